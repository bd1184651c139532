"""The code of docs/changes.md as it stands there, in Node.js and in Chromium: it keeps a copy, and loses nothing."""

import json
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request

from tests.browser import chromium, frontend
from tests.conftest import ROOT, SECRET, Served, make_token, serving, wait_until
from tests.feed import erase_trash
from tests.node import node_with, run
from tests.processes import Client, stop

pytestmark = pytest.mark.slow

DOCUMENT = (ROOT / "docs" / "changes.md").read_text()
CODE = "\n".join(re.findall(r"^```js\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL))

# What the document takes from docs/frontends.md. There is a token for each time that one is asked for.
BEFORE = """
const api = ADDRESS;
let asked = 0;
const authClient = { token: async () => ({ data: { token: TOKENS[Math.min(asked++, TOKENS.length - 1)] } }) };
const tasks = "/api/me/tasks";
async function send(method, path, body, headers = {}) {
  const response = await fetch(api + path, {
    method,
    headers: { Authorization: `Bearer ${TOKENS.at(-1)}`, "Content-Type": "application/json", ...headers },
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(10_000),
  });
  if (response.ok) return response;
  const { status } = response;
  throw Object.assign(new Error(`HTTP ${status}`), { status, ...(await response.json()) });
}
async function call(...request) {
  const response = await send(...request);
  return response.status === 204 ? null : response.json();
}
const shown = []; // at which numbers
const show = () => shown.push(copy.version);
const task = await call("POST", tasks, { title: "Buy milk" });
"""


def program(address: str, tokens: list[str], before: str = "", after: str = "") -> str:
    """Returns the document's code, whole, with what stands before and after it."""
    return f"const ADDRESS = {json.dumps(address)}, TOKENS = {json.dumps(tokens)};\n{before}{BEFORE}{CODE}{after}"


# In Node.js -----------------------------------------------------------------------------------------------------------

NODE_BEFORE = """
import assert from "node:assert/strict";
"""
NODE_AFTER = """
const sorted = (found) => JSON.stringify([...found].sort((one, other) => (one.id < other.id ? -1 : 1)));
async function assertWhole() { // the user's tasks, those in the trash too
  const stored = [...(await call("GET", tasks)), ...(await call("GET", tasks + "?trashed=true"))];
  assert.equal(sorted(copy.tasks.values()), sorted(stored));
}
async function until(condition) {
  for (let left = 500; !(await condition()); left--) {
    assert.ok(left, `waited in vain: ${condition}`);
    await new Promise((resolve) => globalThis.setTimeout(resolve, 20));
  }
}
function create(titles) {
  return call("POST", "/api/me/batch", { operations: titles.map((title) => ({ op: "create", task: { title } })) });
}
"""
# To the document's code, a minute is a second, and a stream comes byte by byte, and is cut now and then.
FAST = """
const pauses = [], sent = [], timers = new Set();
let mayCut = false, isSilent = false;
const setTimeout = (then, milliseconds) => globalThis.setTimeout(then, milliseconds / 60, pauses.push(milliseconds));
const setInterval = (then, milliseconds) => {
  const timer = globalThis.setInterval(then, milliseconds / 60);
  timers.add(timer);
  return timer;
};
const clearInterval = (timer) => globalThis.clearInterval(timer, timers.delete(timer));
const fetch = async (url, init) => {
  const response = await globalThis.fetch(url, init);
  if (!url.endsWith("/events")) return response;
  sent.push(init.headers["Last-Event-ID"]);
  if (!response.ok) return response;
  const reader = response.body.getReader();
  let left = mayCut ? 200 * 1.4 ** sent.length * (1 + Math.random()) : Infinity; // bytes: it does get further
  return new Response(new ReadableStream({
    async start(controller) {
      for (let part; !(part = await reader.read().catch(() => ({ done: true }))).done; ) {
        if (isSilent) await new Promise((resolve) => init.signal.addEventListener("abort", resolve));
        for (const byte of part.value) {
          if (left-- < 0) {
            reader.cancel();
            return controller.error(new Error("cut"));
          }
          controller.enqueue(Uint8Array.of(byte));
        }
      }
      if (init.signal.aborted) controller.error(init.signal.reason);
      else controller.close();
    },
  }));
};
"""


@pytest.fixture(scope="module")
def node() -> str:
    return node_with()


@pytest.fixture
def client(served: Served) -> Client:
    return Client(served)


NodeRun = Callable[..., Any]


@pytest.fixture
def in_node(node: str, client: Client, tmp_path: Path) -> NodeRun:
    """Runs the document's code with this after it; returns the JSON that it prints last."""

    def call(after: str, before: str = "", tokens: list[str] | None = None) -> Any:
        tokens = tokens or [make_token(client.user)]
        text = program(client.address, tokens, NODE_BEFORE + before, NODE_AFTER + after)
        (tmp_path / "page.mjs").write_text(text)
        return json.loads(run(node, "page.mjs", folder=tmp_path).splitlines()[-1])

    return call


RESUME = """
copy.version = KEPT.version;
for (const task of KEPT.tasks) copy.tasks.set(task.id, task);
"""
KEEP = """
console.log(JSON.stringify({ version: copy.version, tasks: [...copy.tasks.values()] }));
"""


def test_a_copy_is_made_kept_and_resumed(in_node: NodeRun, client: Client, database_url: str) -> None:
    kept = in_node(
        """
        for (let n = 0; n < 6; n++) await create(Array.from({ length: 100 }, (_, m) => `Task ${n}.${m}`));
        for (const one of (await call("GET", tasks + "?limit=3"))) await call("DELETE", `${tasks}/${one.id}`);
        let requests = 0;
        const realFetch = fetch;
        globalThis.fetch = (...request) => realFetch(...request, requests++);
        await sync();
        assert.equal(requests, 2, "500 tasks and a hundred");
        assert.deepEqual(shown, [copy.version], "nothing is shown before it is whole");
        await assertWhole();
        await sync();
        assert.equal(requests, 5);
        """
        + KEEP
    )
    trashed = {task["id"] for task in kept["tasks"] if task["deleted_at"]}
    assert len(trashed) == 3
    assert erase_trash(database_url, client.user) == 3
    kept = in_node(
        f"const KEPT = {json.dumps(kept)};{RESUME}"
        """
        const before = copy.version;
        await sync();
        assert.ok(copy.version > before);
        await assertWhole();
        """ + KEEP
    )
    assert not trashed & {task["id"] for task in kept["tasks"]}

    # A task goes without a word of it, and nobody can tell what was before this number: only a full copy helps.
    subprocess.run([sys.executable, "-c", FORGET, database_url, client.user, kept["tasks"][0]["id"]], check=True)
    in_node(
        f"const KEPT = {json.dumps(kept)};{RESUME}"
        """
        assert.equal((await call("GET", `/api/me/changes?since=${copy.version}`).catch((error) => error)).status, 410);
        await sync();
        assert.equal(copy.tasks.size, KEPT.tasks.length); // less the one that went, and with the new "Buy milk"
        await assertWhole();
        """ + KEEP
    )


# Takes a task away without a word of it, and raises the floor below which a number is a 410.
FORGET = """
import sys, psycopg
with psycopg.connect(sys.argv[1]) as connection:
    connection.execute("delete from tasks.task where user_id = %s and id = %s", sys.argv[2:])
    connection.execute(
        "update tasks.account set version = version + 1, history_floor = version + 1, erased_floor = version + 1"
        " where user_id = %s",
        sys.argv[2:3],
    )
"""


def test_a_long_poll_brings_the_change(in_node: NodeRun) -> None:
    in_node("""
        await sync();
        const before = copy.version, started = Date.now();
        const waiting = sync(8);
        await new Promise((resolve) => setTimeout(resolve, 300));
        assert.equal(copy.version, before);
        await create(["Buy bread"]);
        await waiting;
        assert.equal(copy.version, before + 1);
        assert.ok(Date.now() - started < 5000, "not at the end of its time");
        await assertWhole();
        console.log("null");
    """)


def test_pages_may_come_in_any_order_and_twice(in_node: NodeRun) -> None:
    in_node("""
        await sync();
        const start = copy.version;
        const pages = [];
        for (let number = 0; number < 4; number++) {
          await call("PATCH", `${tasks}/${task.id}`, { title: `Number ${number}` });
          const since = start + (number % 2); // they overlap
          pages.push({ since, page: await call("GET", `/api/me/changes?since=${since}`) });
        }
        assert.equal(apply(pages[3].since, pages[3].page), false, "one is missing before it");
        assert.equal(copy.version, start);
        for (const index of [0, 3, 2, 1, 0, 3]) assert.equal(apply(pages[index].since, pages[index].page), true);
        assert.deepEqual([copy.version, copy.tasks.get(task.id).title], [start + 4, "Number 3"]);
        await assertWhole();
        console.log("null");
    """)


# Titles that take a stream apart which is read carelessly
TITLES = ["Kjøp melk 🥛", "a\n\ndata: {}", "id: 7", "\u2028data: x\u2029", "שלום", "a: b: c", "\\n\r\n", "𝕏" * 100]


def test_a_stream_that_is_cut_anywhere_loses_nothing(in_node: NodeRun) -> None:
    found = in_node(
        f"const TITLES = {json.dumps(TITLES)};"
        """
        mayCut = true;
        const stop = new AbortController(), numbers = [];
        const ended = stream(({ since, page }) => {
          assert.equal(apply(since, page), true);
          numbers.push(page.version);
        }, stop.signal);
        console.warn = () => {};
        for (let n = 0; n < 40; n++) {
          await create([TITLES[n % TITLES.length], `Beside ${n}`]);
          if (n % 4 === 0) await call("DELETE", `${tasks}/${(await call("GET", tasks + "?limit=1"))[0].id}`);
          if (n % 10 === 0) await new Promise((resolve) => globalThis.setTimeout(resolve, 100));
        }
        const { version } = await create(["The last one"]);
        await until(() => copy.version === version);
        await assertWhole();
        assert.deepEqual(numbers, [...new Set(numbers)].sort((a, b) => a - b), "no page came twice");
        assert.deepEqual(sent, sent.map((number) => (number === 0 || numbers.includes(number) ? number : NaN)));
        stop.abort();
        await ended;
        assert.equal(timers.size, 0);
        console.log(JSON.stringify({ pauses, connections: sent.length }));
        """,
        FAST,
    )
    assert found["connections"] > 3
    # all as long as the service said, which says another time to each stream
    assert len(found["pauses"]) >= found["connections"] - 1
    assert all(2000 <= pause <= 8000 for pause in found["pauses"])
    assert len(set(found["pauses"])) > 1


def test_a_stream_gets_a_new_token_when_the_old_one_expires(in_node: NodeRun, client: Client) -> None:
    now = int(time.time())
    tokens = [make_token(client.user, exp=now + 2), make_token(client.user)]
    in_node(
        """
        const stop = new AbortController();
        stream(({ since, page }) => apply(since, page), stop.signal);
        await until(() => sent.length === 2);
        assert.equal(asked, 2, "each connection has a token of its own");
        assert.equal(sent[1], copy.version);
        const { version } = await create(["With the second token"]);
        await until(() => copy.version === version);
        await assertWhole();
        stop.abort();
        console.log("null");
        """,
        FAST,
        tokens,
    )


def test_a_stream_that_is_silent_is_made_anew(in_node: NodeRun) -> None:
    in_node(
        """
        console.warn = () => {};
        const stop = new AbortController();
        await sync();
        isSilent = true;
        stream(({ since, page }) => apply(since, page), stop.signal);
        await until(() => sent.length === 1);
        const { version } = await create(["Nobody hears of it"]);
        isSilent = false; // for the next connection
        await until(() => sent.length === 2);
        await until(() => copy.version === version);
        stop.abort();
        console.log("null");
        """,
        FAST,
    )


@pytest.mark.parametrize("is_connected", [True, False], ids=["reset", "410"])
def test_a_stream_that_cannot_go_on_replaces_the_copy(
    in_node: NodeRun, client: Client, database_url: str, is_connected: bool
) -> None:
    lost = client.create("To be lost").json()["id"]
    forgetting = json.dumps([sys.executable, "-c", FORGET, database_url, client.user, lost])
    in_node(
        f"const isConnected = {json.dumps(is_connected)}, lost = {json.dumps(lost)}, forgetting = {forgetting};"
        """
        import { execFileSync } from "node:child_process";
        const forget = () => execFileSync(forgetting[0], forgetting.slice(1));
        const stop = new AbortController(), told = [];
        await sync();
        assert.ok(copy.tasks.has(lost));
        const before = copy.version;
        if (!isConnected) forget();
        stream(({ since, page }) => {
          told.push(Boolean(page.tasks));
          return apply(since, page) || sync();
        }, stop.signal);
        if (isConnected) {
          const { version } = await create(["It is connected"]);
          await until(() => copy.version === version);
          forget();
        }
        await until(() => copy.version > before && !copy.tasks.has(lost));
        assert.ok(told.includes(false));
        await assertWhole();
        const { version } = await create(["And it goes on"]);
        await until(() => copy.version === version);
        await assertWhole();
        stop.abort();
        console.log("null");
        """,
        FAST,
    )


def test_a_stream_stops_when_it_is_told_to(in_node: NodeRun, served: Served, client: Client) -> None:
    in_node(
        """
        const stop = new AbortController(), warnings = [];
        console.warn = (...words) => warnings.push(words);
        const ended = stream(({ since, page }) => apply(since, page), stop.signal);
        await until(() => copy.version === task.version || copy.tasks.size);
        stop.abort();
        await ended;
        assert.deepEqual([sent.length, warnings, timers.size], [1, [], 0]);
        const never = new AbortController();
        never.abort();
        await stream(() => assert.fail(), never.signal);
        assert.equal(sent.length, 1);
        console.log("null");
        """,
        FAST,
    )
    wait_until(lambda: sum("/events 200" in line and client.user in line for line in lines(served)) == 1)


def lines(served: Served) -> list[str]:
    return served.log.read_text().splitlines()


# In Chromium ----------------------------------------------------------------------------------------------------------

# Seconds, where it takes milliseconds: the machine may be busy. A stream that was lost takes longer to come back.
SOON = 3_000
BACK = 20_000

BROWSER_BEFORE = """
const pages = []; // what came over the channel
new BroadcastChannel("tasks of " + USER).onmessage = ({ data }) => pages.push(data);
"""
BROWSER_AFTER = """
const stop = new AbortController();
globalThis.problems = [];
globalThis.onunhandledrejection = ({ reason }) => problems.push(String(reason));
Object.assign(globalThis, { copy, call, undo, stop, pages, shown, tasks });
globalThis.titles = () => [...copy.tasks.values()].filter((one) => !one.deleted_at).map((one) => one.title);
live(USER, stop.signal).catch((reason) => stop.signal.aborted || problems.push(String(reason)));
globalThis.isLive = true;
"""

browser = pytest.fixture(scope="module")(chromium)
listed = pytest.fixture(scope="module")(frontend)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, database_url: str, listed: str) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("sync")
    with serving(folder, DATABASE_URL=database_url, BETTER_AUTH_SECRET=SECRET, FRONTEND_URL=listed) as served:
        yield served


@dataclass
class Device:
    """A browser of the user's, with the tabs that are open, and the streams that they have asked for."""

    context: BrowserContext
    user: str
    origin: str
    service: Served
    address: str | None = None  # where it reaches the service, if not there
    opened: list[Request] = field(default_factory=list)
    ended: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.context.on("request", self._begun)
        self.context.on("requestfinished", self._ended)
        self.context.on("requestfailed", self._ended)

    def _begun(self, request: Request) -> None:
        if request.url.endswith("/events") and request.method == "GET":  # and not the preflight
            self.opened.append(request)

    def _ended(self, request: Request) -> None:
        self.ended.append(request)

    @property
    def streams(self) -> list[Request]:
        """The streams that are open."""
        return [one for one in self.opened if one not in self.ended and not one.frame.page.is_closed()]

    def tab(self) -> Page:
        """Opens a page with the document's code; returns it when it has the user's tasks."""
        page = self.context.new_page()
        page.goto(self.origin)
        before = f"const USER = {json.dumps(self.user)};{BROWSER_BEFORE}"
        code = program(self.address or self.service.address, [make_token(self.user)], before, BROWSER_AFTER)
        page.add_script_tag(content=code, type="module")
        page.wait_for_function("() => globalThis.isLive && shown.length")
        return page


MakeDevice = Callable[..., Device]


@pytest.fixture
def device(browser: Browser, service: Served, listed: str) -> Iterator[MakeDevice]:
    """Makes a device, of a user of the test's own; in the end no tab may have met an error."""
    user = f"user-{uuid4()}"
    devices: list[Device] = []

    def make(address: str | None = None) -> Device:
        devices.append(Device(browser.new_context(), user, listed, service, address))
        return devices[-1]

    yield make
    for one in devices:
        problems = [page.evaluate("problems") for page in one.context.pages]
        one.context.close()
        assert not any(problems), problems


def shows(page: Page, title: str, milliseconds: float = SOON) -> None:
    """Waits until the tab shows a task with this title."""
    page.wait_for_function("(title) => titles().includes(title)", arg=title, timeout=milliseconds)


def assert_whole(*pages: Page) -> None:
    """Every tab has what the service has, at the same number, and each number that was shown was a later one."""
    stored = pages[0].evaluate(
        "(async () => [...await call('GET', tasks), ...await call('GET', tasks + '?trashed=true')])()"
    )
    number = max(task["version"] for task in stored)
    for page in pages:
        page.wait_for_function("(number) => copy.version >= number", arg=number, timeout=BACK)
        found = page.evaluate("[...copy.tasks.values()]")
        assert sorted(found, key=by_id) == sorted(stored, key=by_id)
        numbers = page.evaluate("shown")
        assert numbers == sorted(numbers)


def by_id(task: dict[str, Any]) -> str:
    return str(task["id"])


def test_a_change_is_shown_in_all_tabs_of_another_device_by_one_stream(device: MakeDevice) -> None:
    laptop, phone = device(), device()
    tabs = [laptop.tab(), laptop.tab()]
    other = phone.tab()
    wait_for_streams(laptop, 1)
    wait_for_streams(phone, 1)
    for number in range(10):
        other.evaluate("(title) => call('POST', tasks, { title })", f"Task {number}")
        for tab in tabs:
            shows(tab, f"Task {number}")
    mine = tabs[1].evaluate("call('POST', tasks, { title: 'From the laptop' })")
    for page in (*tabs, other):
        shows(page, "From the laptop")
    other.evaluate("(id) => call('DELETE', `${tasks}/${id}`)", mine["id"])
    for page in (*tabs, other):
        page.wait_for_function("() => !titles().includes('From the laptop')", timeout=SOON)
    assert_whole(*tabs, other)
    assert (len(laptop.opened), len(phone.opened)) == (1, 1), "the second tab never asked for a stream"
    (leader,) = {request.frame.page for request in laptop.opened}
    (follower,) = set(tabs) - {leader}
    assert len(follower.evaluate("pages")) >= 12, "the follower's came over the channel"
    # on the server: what is in the log has ended, and nothing has
    assert not [line for line in lines(laptop.service) if "/events" in line and laptop.user in line]
    laptop.context.close()
    wait_until(lambda: ended_streams(laptop) == 1)
    phone.context.close()
    wait_until(lambda: ended_streams(laptop) == 2)


def ended_streams(device: Device) -> int:
    """Returns how many streams of the user the service has ended, on all devices."""
    return sum("/events 200" in line and device.user in line for line in lines(device.service))


def wait_for_streams(device: Device, number: int) -> None:
    deadline = time.monotonic() + BACK / 1000
    while len(device.streams) != number:
        assert time.monotonic() < deadline, "waited in vain"
        device.context.pages[0].wait_for_timeout(50)  # Playwright's events come meanwhile


def test_a_closed_leader_hands_over_without_a_lost_change(device: MakeDevice) -> None:
    laptop, phone = device(), device()
    tabs = [laptop.tab() for _ in range(3)]
    other = phone.tab()
    wait_for_streams(laptop, 1)
    for rest in (2, 1):
        other.evaluate(
            """() => { globalThis.writing = (async () => {
                for (let n = 0; n < 60; n++) await call("POST", tasks, { title: `Task ${n}` });
            })(); }"""
        )
        other.wait_for_timeout(50)
        (stream,) = laptop.streams
        leader = stream.frame.page
        leader.close()
        tabs.remove(leader)
        assert len(tabs) == rest
        other.evaluate("writing")
        wait_for_streams(laptop, 1)
        assert_whole(*tabs, other)
        assert laptop.streams[0].frame.page in tabs
    assert len(laptop.opened) == 3, "one after the other"


class Network(ThreadingTCPServer):
    """A network between a device and the service. Chromium's own "offline" lets go on what has begun."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Connection)
        self.service = ("127.0.0.1", port)
        self.connections: set[socket.socket] = set()

    def cut(self) -> None:
        """Breaks what is connected."""
        for connection in [*self.connections]:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Connection(BaseRequestHandler):
    """A connection through the network."""

    def handle(self) -> None:
        assert isinstance(self.server, Network)
        with socket.create_connection(self.server.service) as service:
            ends = {self.request: service, service: self.request}
            self.server.connections.add(self.request)
            with suppress(OSError):
                while ends:
                    for end in select.select([*ends], [], [])[0]:
                        if not (data := end.recv(65_536)):
                            return
                        ends[end].sendall(data)


@pytest.fixture
def network(service: Served) -> Iterator[Network]:
    with Network(service.port) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.cut()
        server.shutdown()
        thread.join()


def test_a_device_that_was_offline_resumes(device: MakeDevice, network: Network) -> None:
    laptop, phone = device(f"http://127.0.0.1:{network.server_address[1]}"), device()
    tabs = [laptop.tab(), laptop.tab()]
    other = phone.tab()
    wait_for_streams(laptop, 1)
    number = tabs[0].evaluate("copy.version")
    laptop.context.set_offline(True)
    network.cut()
    wait_for_streams(laptop, 0)
    task = other.evaluate("call('POST', tasks, { title: 'Made meanwhile' })")
    shows(other, "Made meanwhile")
    for tab in tabs:
        assert "Made meanwhile" not in tab.evaluate("titles()")
    laptop.context.set_offline(False)
    for tab in tabs:
        shows(tab, "Made meanwhile", BACK)
    sent = int(laptop.streams[0].all_headers()["last-event-id"])
    assert number <= sent < task["version"], "it went on from its number"
    assert_whole(*tabs, other)


def test_a_restart_of_the_service_is_survived(browser: Browser, listed: str, tmp_path: Path, database_url: str) -> None:
    settings = {"DATABASE_URL": database_url, "BETTER_AUTH_SECRET": SECRET, "FRONTEND_URL": listed}
    with serving(tmp_path, **settings) as first:
        laptop = Device(browser.new_context(), f"user-{uuid4()}", listed, first)
        tabs = [laptop.tab(), laptop.tab()]
        wait_for_streams(laptop, 1)
        stop(first)
    with serving(tmp_path, **settings, PORT=str(first.port)) as second:
        Client(second, laptop.user).create("After the restart")
        for tab in tabs:
            shows(tab, "After the restart", BACK)
        assert_whole(*tabs)
        laptop.context.close()


def test_a_copy_that_cannot_be_continued_is_replaced_in_all_tabs(device: MakeDevice, database_url: str) -> None:
    laptop = device()
    tabs = [laptop.tab(), laptop.tab()]
    wait_for_streams(laptop, 1)
    lost = tabs[0].evaluate("call('POST', tasks, { title: 'To be lost' })")
    for tab in tabs:
        shows(tab, "To be lost")
    subprocess.run([sys.executable, "-c", FORGET, database_url, laptop.user, lost["id"]], check=True)
    for tab in tabs:
        tab.wait_for_function("() => !titles().includes('To be lost')", timeout=BACK)
    tabs[0].evaluate("call('POST', tasks, { title: 'And it goes on' })")
    for tab in tabs:
        shows(tab, "And it goes on", BACK)
    assert_whole(*tabs)


def test_any_device_undoes_what_it_sees_in_the_history(device: MakeDevice) -> None:
    laptop, phone = device(), device()
    tabs = [laptop.tab(), laptop.tab()]
    other = phone.tab()
    task = tabs[0].evaluate("call('POST', tasks, { title: 'Buy bread' })")
    tabs[0].evaluate("(id) => call('PATCH', `${tasks}/${id}`, { title: 'Buy rolls' })", task["id"])
    shows(other, "Buy rolls")
    undone = other.evaluate("""(async () => {
        const entries = await call("GET", "/api/me/history");
        return undo(entries.find(({ after }) => after.title === "Buy rolls").version);
    })()""")
    for page in (*tabs, other):
        shows(page, "Buy bread")
    tabs[1].evaluate("(version) => undo(version)", undone["version"])  # redo, at the other end
    for page in (*tabs, other):
        shows(page, "Buy rolls")
    other.evaluate("(id) => call('PATCH', `${tasks}/${id}`, { title: 'Buy cake' })", task["id"])
    refused = other.evaluate("(version) => undo(version).catch((error) => ({ ...error }))", undone["version"])
    assert (refused["status"], refused["detail"]) == (409, "Changed since")
    assert refused["conflicts"] == [{"task_id": task["id"], "fields": ["title"]}]
    assert_whole(*tabs, other)


def test_at_sign_out_everything_stops(device: MakeDevice) -> None:
    laptop = device()
    tabs = [laptop.tab(), laptop.tab()]
    wait_for_streams(laptop, 1)
    for tab in tabs:
        tab.evaluate("stop.abort()")
    wait_for_streams(laptop, 0)
    before = [tab.evaluate("copy.version") for tab in tabs]
    Client(laptop.service, laptop.user).create("Nobody sees it")
    tabs[0].wait_for_timeout(9_000)  # longer than a stream waits before it comes back
    assert [tab.evaluate("copy.version") for tab in tabs] == before
    assert len(laptop.opened) == 1
