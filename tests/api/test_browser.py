"""What only a browser can show: a frontend's scripts may call the API, a stranger's may not, and /docs stands alone."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from playwright.sync_api import Browser, Error, Locator, Page, expect

from tests.browser import chromium, frontend
from tests.conftest import SECRET, Served, make_token, serving, wait_until

pytestmark = pytest.mark.slow

# What CORS hides from the script is not among the headers that it collects.
FETCH = """async ([url, options]) => {
    const response = await fetch(url, {credentials: "include", ...options});
    const text = await response.text();
    return [response.status, Object.fromEntries(response.headers), text ? JSON.parse(text) : null];
}"""


browser = pytest.fixture(scope="module")(chromium)
listed = pytest.fixture(scope="module")(frontend)
unlisted = pytest.fixture(scope="module")(frontend)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, database_url: str, listed: str) -> Iterator[Served]:
    """The service, with the listed origin as one of two."""
    folder = tmp_path_factory.mktemp("browser")
    origins = f"https://frontend.test, {listed}"
    with serving(folder, DATABASE_URL=database_url, BETTER_AUTH_SECRET=SECRET, FRONTEND_URL=origins) as served:
        yield served


@dataclass
class Answer:
    """What a script in the page gets to see of an answer."""

    status: int
    headers: dict[str, str]
    body: Any


@dataclass
class Visitor:
    """A user with a page open."""

    id: str
    page: Page
    address: str  # the service's

    @property
    def token(self) -> str:
        return make_token(self.id)

    @property
    def tasks(self) -> str:
        return f"/api/{self.id}/tasks"

    def fetch(self, path: str, **options: Any) -> Answer:
        """Calls the service by the page's `fetch`."""
        return Answer(*self.page.evaluate(FETCH, [self.address + path, options]))

    def call(self, method: str, path: str = "", body: Any = None, **headers: str) -> Answer:
        """Calls the API below the user's tasks by the page's `fetch`."""
        headers |= {"Authorization": f"Bearer {self.token}"}
        if body is None:
            return self.fetch(self.tasks + path, method=method, headers=headers)
        headers |= {"Content-Type": "application/json"}
        return self.fetch(self.tasks + path, method=method, headers=headers, body=json.dumps(body))

    def stored(self) -> Any:
        """Returns the user's tasks, without the browser."""
        response = httpx.get(self.address + self.tasks, headers={"Authorization": f"Bearer {self.token}"})
        assert response.status_code == 200, response.text
        return response.json()


@pytest.fixture
def visitor(browser: Browser, service: Served) -> Iterator[Visitor]:
    """A user of the test's own, with a page in a profile of its own: no cache, no cookies, no remembered preflight."""
    with browser.new_page() as page:
        yield Visitor(f"visitor-{uuid4()}", page, service.address)


# A frontend -----------------------------------------------------------------------------------------------------------


def test_a_listed_page_calls_all_six_routes(visitor: Visitor, listed: str) -> None:
    visitor.page.goto(listed)
    created = visitor.call("POST", body={"title": "Buy milk"})
    assert (created.status, created.body["title"]) == (201, "Buy milk")
    path = f"/{created.body['id']}"

    found = visitor.call("GET", path)
    assert (found.status, found.body) == (200, created.body)

    for method, rest, body, expected in (
        ("PUT", "", {"title": "Buy oat milk"}, {"title": "Buy oat milk"}),
        ("PATCH", "", {"priority": "high"}, {"priority": "high"}),
        ("PATCH", "/complete", None, {"is_completed": True}),
        ("PATCH", "/complete", {"is_completed": False}, {"is_completed": False}),
    ):
        changed = visitor.call(method, path + rest, body)
        assert changed.status == 200
        assert changed.body.items() >= expected.items()
        tasks = visitor.call("GET")
        assert (tasks.status, tasks.body) == (200, [changed.body])

    deleted = visitor.call("DELETE", path)
    assert (deleted.status, deleted.body) == (204, None)
    assert visitor.stored() == []


def test_a_listed_page_may_send_and_read_the_contract_s_headers(visitor: Visitor, listed: str) -> None:
    visitor.page.goto(listed)
    sent = {
        "Idempotency-Key": str(uuid4()),
        "If-Match": "*",
        "If-None-Match": '"0"',
        "Last-Event-ID": "0",
        "X-Request-Id": "sent-by-the-page",
    }
    created = visitor.call("POST", body={"title": "Buy milk"}, **sent)
    assert created.status == 201
    assert created.headers["location"] == f"{visitor.tasks}/{created.body['id']}"
    assert created.headers["x-request-id"] == "sent-by-the-page"
    assert created.headers["server-timing"].startswith("total;dur=")


def test_a_list_that_has_not_changed_is_not_sent_again(visitor: Visitor, service: Served, listed: str) -> None:
    visitor.page.goto(listed)
    visitor.call("POST", body={"title": "Buy milk", "description": "x" * 500})

    def fetched() -> tuple[Answer, int]:
        """Returns what the script sees, and the status that the service sent."""
        request_id = uuid4().hex
        answer = visitor.call("GET", "", **{"X-Request-Id": request_id})
        wait_until(lambda: request_id in service.log.read_text())
        (line,) = [line for line in service.log.read_text().splitlines() if request_id in line]
        return answer, int(line.split("/api/{user_id}/tasks ")[1].split()[0])

    (first, first_sent), (second, second_sent) = fetched(), fetched()
    assert (first_sent, second_sent) == (200, 304)
    assert (first.status, second.status) == (200, 200), "the script sees no difference"
    assert first.body == second.body == visitor.stored()
    visitor.call("PATCH", f"/{first.body[0]['id']}/complete")
    third, third_sent = fetched()
    assert third_sent == 200
    assert third.body[0]["is_completed"] is True


def test_a_listed_page_follows_the_links_from_page_to_page(visitor: Visitor, listed: str) -> None:
    visitor.page.goto(listed)
    for number in range(5):
        visitor.call("POST", body={"title": f"Task {number}"})
    answer = visitor.call("GET", "?limit=2&count=true")
    found = answer.body
    assert answer.headers["x-total-count"] == "5"
    while "link" in answer.headers:
        url = answer.headers["link"].split(">")[0].removeprefix("<")
        answer = visitor.fetch(url.removeprefix(visitor.address), headers={"Authorization": f"Bearer {visitor.token}"})
        found += answer.body
    assert found == visitor.stored()


def test_two_tabs_that_edit_one_task_do_not_overwrite_each_other(
    browser: Browser, visitor: Visitor, listed: str
) -> None:
    visitor.page.goto(listed)
    task = visitor.call("POST", body={"title": "Buy milk"}).body
    path = f"/{task['id']}"
    with browser.new_page() as second_page:
        second_page.goto(listed)
        second = Visitor(visitor.id, second_page, visitor.address)
        seen = [tab.call("GET", path) for tab in (visitor, second)]
        assert {answer.headers["etag"] for answer in seen} == {f'"{task["version"]}"'}
        etag = f'"{task["version"] + 1}"'
        won = second.call("PATCH", path, {"title": "Second"}, **{"If-Match": seen[1].headers["etag"]})
        assert (won.status, won.headers["etag"]) == (200, etag)
        lost = visitor.call("PATCH", path, {"title": "First"}, **{"If-Match": seen[0].headers["etag"]})
        assert (lost.status, lost.body, lost.headers["etag"]) == (412, {"detail": "Task has changed"}, etag)
        again = visitor.call("PATCH", path, {"title": "First"}, **{"If-Match": lost.headers["etag"]})
        assert (again.status, again.body["version"]) == (200, task["version"] + 2)
    assert [task["title"] for task in visitor.stored()] == ["First"]


ABORTED = """async ([url, options]) => {
    const control = new AbortController();
    const answer = fetch(url, {...options, signal: control.signal}).then(() => "answered", (error) => error.name);
    setTimeout(() => control.abort(), 300);
    return answer;
}"""


def test_a_retry_after_an_aborted_request_makes_one_task(visitor: Visitor, listed: str, database_url: str) -> None:
    visitor.page.goto(listed)
    visitor.call("POST", body={"title": "Before"})  # so that there is an account to hold
    key = {"Idempotency-Key": str(uuid4())}
    headers = {"Authorization": f"Bearer {visitor.token}", "Content-Type": "application/json"} | key
    options = {"method": "POST", "headers": headers, "body": json.dumps({"title": "Buy milk"})}
    with psycopg.connect(database_url) as holder:
        holder.execute("select from tasks.account where user_id = %s for update", (visitor.id,))
        assert visitor.page.evaluate(ABORTED, [visitor.address + visitor.tasks, options]) == "AbortError"
    wait_until(lambda: len(visitor.stored()) == 2)  # the request had arrived
    again = visitor.call("POST", body={"title": "Buy milk"}, **key)
    assert (again.status, again.headers["idempotent-replayed"]) == (201, "true")
    assert [task["title"] for task in visitor.stored()] == ["Buy milk", "Before"]


def test_a_listed_page_can_read_errors(visitor: Visitor, listed: str) -> None:
    visitor.page.goto(listed)
    for answer, status, detail in (
        (visitor.fetch(visitor.tasks), 401, "Missing authorization header"),
        (visitor.call("GET", f"/{uuid4()}"), 404, "Task not found"),
        (visitor.fetch("/nowhere"), 404, "Not Found"),
        (visitor.call("POST", body={"title": "x" * 65_536}), 413, "Request body too large"),
        (visitor.call("POST", body={}), 422, [{"loc": ["body", "title"], "msg": "Field required", "type": "missing"}]),
    ):
        assert (answer.status, answer.body) == (status, {"detail": detail})
        assert answer.headers["x-request-id"]


def test_a_page_that_is_not_listed_is_refused(visitor: Visitor, unlisted: str) -> None:
    visitor.page.goto(unlisted)
    with refused_by_cors(visitor.page):
        visitor.call("POST", body={"title": "Buy milk"})  # the preflight comes first, and goes no further
    with refused_by_cors(visitor.page):
        visitor.fetch("/healthz")  # needs no preflight
    assert visitor.stored() == []


@contextmanager
def refused_by_cors(page: Page) -> Iterator[None]:
    """Expects `fetch` to fail; as it tells the script no reason, the console must tell that CORS is the reason."""
    with (
        page.expect_console_message(lambda message: "blocked by CORS policy" in message.text),
        pytest.raises(Error, match="TypeError: Failed to fetch"),
    ):
        yield


# Dates ----------------------------------------------------------------------------------------------------------------

# What a page does with the date and time that a person has put into its fields, and what it shows of a task.
ENTERED = """() => {
    document.body.innerHTML = "<input type=date id=day><input type=time id=clock><p id=shown></p>";
}"""
SHOWN = """(task) => {
    const [year, month, day] = task.due_date.split("-").map(Number);
    const [hour, minute] = task.due_time.split(":").map(Number);
    const due = new Date(year, month - 1, day, hour, minute); // not new Date(task.due_date), which is midnight in UTC
    document.querySelector("#shown").textContent = due.toLocaleString("en-GB", {dateStyle: "full", timeStyle: "short"});
}"""
TODAY = "() => new Intl.DateTimeFormat('sv').format(new Date())"


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/Anchorage", "Asia/Kolkata"])
def test_a_page_shows_the_day_that_was_entered_wherever_it_is(
    browser: Browser, service: Served, listed: str, zone: str
) -> None:
    with browser.new_page(timezone_id="Europe/Berlin") as page:
        page.goto(listed)
        page.evaluate(ENTERED)
        page.locator("#day").fill("2026-11-27")
        page.locator("#clock").fill("00:30")
        entered = Visitor(f"visitor-{uuid4()}", page, service.address)
        body = {"due_date": page.locator("#day").input_value(), "due_time": page.locator("#clock").input_value()}
        created = entered.call("POST", body={"title": "Buy milk"} | body)
        assert created.status == 201
        assert (created.body["due_date"], created.body["due_time"]) == ("2026-11-27", "00:30:00")
    with browser.new_page(timezone_id=zone) as page:
        page.goto(listed)
        page.evaluate(ENTERED)
        seen = Visitor(entered.id, page, service.address)
        (task,) = seen.call("GET").body
        page.evaluate(SHOWN, task)
        assert page.locator("#shown").inner_text() == "Friday, 27 November 2026 at 00:30"
        page.locator("#day").fill(task["due_date"])
        assert page.locator("#day").input_value() == "2026-11-27"

        # what is due today is told where the page is: there may be another day by then
        own = page.evaluate("() => Intl.DateTimeFormat().resolvedOptions().timeZone")  # maybe by an older name
        path, days = f"/{task['id']}", [page.evaluate(TODAY)]
        assert seen.call("PATCH", path, {"due_date": days[0], "due_time": None}).status == 200
        found = seen.call("GET", f"?due=today&time_zone={own}")
        days.append(page.evaluate(TODAY))
        assert found.status == 200
        assert "etag" not in found.headers
        assert [one["due_date"] for one in found.body] == days[:1] or days[0] != days[1]


# The documentation ----------------------------------------------------------------------------------------------------


@contextmanager
def docs_open(visitor: Visitor) -> Iterator[Page]:
    """Opens /docs; by the end of the block it must have asked no other host for anything and had no errors."""
    page = visitor.page
    urls: list[str] = []
    messages: list[tuple[str, str]] = []
    page.on("request", lambda request: urls.append(request.url))
    # what violates the content security policy is an error on the console, too
    page.on("console", lambda message: messages.append((message.type, message.text)))
    page.on("pageerror", lambda error: messages.append(("error", str(error))))
    page.goto(visitor.address + "/docs", wait_until="networkidle")
    yield page
    assert [url for url in urls if not url.startswith(visitor.address + "/")] == []
    assert [text for kind, text in messages if kind == "error"] == []
    expect(page.locator(".errors-wrapper")).to_have_count(0)


def test_docs_render_every_operation(visitor: Visitor) -> None:
    paths = httpx.get(visitor.address + "/openapi.json").json()["paths"]
    operations = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    with docs_open(visitor) as page:
        blocks = page.locator(".opblock")
        expect(blocks).to_have_count(len(operations))
        assert {shown_operation(block) for block in blocks.all()} == operations


def shown_operation(block: Locator) -> tuple[str, str | None]:
    path = block.locator(".opblock-summary-path").get_attribute("data-path")  # the text has breaks in it
    return block.locator(".opblock-summary-method").inner_text(), path


def authorize(page: Page, token: str) -> None:
    """Gives the page the token, and reads there where one comes from."""
    page.get_by_role("button", name="Authorize").click()
    dialog = page.locator(".dialog-ux")
    expect(dialog).to_contain_text("python -m service token USER")
    expect(dialog).to_contain_text("Better Auth")
    dialog.get_by_label("auth-bearer-value").fill(token)
    dialog.get_by_role("button", name="Apply credentials").click()
    dialog.get_by_role("button", name="Close").click()


def test_docs_find_tasks_with_the_list_as_it_stands(visitor: Visitor) -> None:
    behind_a_proxy = httpx.get(visitor.address + "/openapi.json").json() | {"servers": [{"url": "http://inside.test"}]}
    visitor.page.route("**/openapi.json", lambda route: route.fulfill(json=behind_a_proxy))
    with docs_open(visitor) as page:
        authorize(page, visitor.token)
        visitor.call("POST", body={"title": "Kjøp melk"})
        first, second = page.locator(".opblock").all()[:2]
        assert shown_operation(first) == ("GET", "/api/{user_id}/tasks")
        assert shown_operation(second) == ("POST", "/api/{user_id}/tasks")
        first.locator(".opblock-summary-control").click()
        first.get_by_role("button", name="Execute").click()
        answer = first.locator(".live-responses-table .response")
        expect(answer.locator(".response-col_status")).to_contain_text("200")
        expect(answer).to_contain_text("Kjøp melk")
        # the address that the page is at, and no filter that nobody asked for
        expect(first.locator(".request-url pre")).to_have_text(f"{visitor.address}/api/me/tasks")


def test_docs_create_a_task_by_clicks(visitor: Visitor) -> None:
    with docs_open(visitor) as page:
        authorize(page, visitor.token)
        operation = page.locator("#operations-tasks-create_task")
        operation.locator(".opblock-summary-control").click()
        example = json.loads(operation.locator("textarea").input_value())
        operation.get_by_role("button", name="Execute").click()
        expect(operation.locator(".live-responses-table .response .response-col_status")).to_contain_text("201")

    (task,) = visitor.stored()
    assert task.items() >= example.items()
