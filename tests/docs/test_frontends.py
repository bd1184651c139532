"""The code for pages: with a real Better Auth server, and with generated types."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.api.test_better_auth import NODE_MODULES, PASSWORD, BetterAuth, better_auth
from tests.api.test_better_auth import PACKAGE as BETTER_AUTH
from tests.api.test_generators import BINARIES
from tests.api.test_generators import PACKAGE as GENERATORS
from tests.conftest import Served, make_token, serving, wait_until
from tests.docs.pages import blocks
from tests.node import node_with, run
from tests.processes import Client

pytestmark = pytest.mark.slow

PAGE = "docs/frontends.md"
API = "http://127.0.0.1:8000"

# What a browser does by itself: it keeps cookies, and says which page asks.
BROWSER = """
import assert from "node:assert/strict";

const [, , address, server, email, password] = process.argv;
const realFetch = fetch;
let cookie = "";
let tokens = 0; // that were asked for
const broken = []; // which come in place of the server's
let toLose = 0; // answers that do not arrive
globalThis.fetch = async (input, init = {}) => {
  const url = String(input.url ?? input);
  if (!url.startsWith(server)) {
    const response = await realFetch(input, init);
    if (toLose && init.method === "POST" && toLose--) throw new TypeError("fetch failed");
    return response;
  }
  if (url.endsWith("/token")) tokens++;
  if (url.endsWith("/token") && broken.length) return Response.json({ token: broken.pop() });
  const headers = new Headers(init.headers);
  headers.set("Origin", server);
  if (cookie) headers.set("Cookie", cookie);
  const response = await realFetch(input, { ...init, headers });
  cookie ||= response.headers.getSetCookie().map((one) => one.split(";")[0]).join("; ");
  return response;
};
const session = await fetch(server + "/api/auth/sign-in/email", {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({ email, password }),
}).then((response) => response.json());

globalThis.FormData = class {
  constructor(form) {
    return Object.entries(form.values);
  }
};
function aForm(values) {
  const fields = ["title", "priority"].map((name) => ({ name, setCustomValidity(text) { this.told = text; } }));
  const elements = Object.assign([...fields], Object.fromEntries(fields.map((field) => [field.name, field])));
  return { values, elements, reportValidity() { this.reported = true; } };
}
const shown = [];
const show = (page) => shown.push(page);
"""

AFTERWARDS = """
assert.equal(tokens, 1, "one token serves many calls");
assert.ok(shown[1].includes("31") && shown[1].includes("2026"), "the day that was meant");
assert.deepEqual(shown[2].map((one) => [one.title, one.due_date]), [["Pay the rent", "2026-02-28"]], "what is overdue");
assert.deepEqual(shown.slice(3), [[]], "nothing is due today");
assert.deepEqual([labels, urgent, renaming], [[], [], { version: null, tasks: 0 }]);
assert.deepEqual([shown[0][0].title, shown[0][0].status], ["Buy milk", "in_progress"]);
assert.deepEqual(results.map(({ status, task }) => [status, task.version]), [[201, version], [200, version]]);
assert.equal((await call("GET", `${tasks}/${task.id}`)).deleted_at, null, "back from the trash");
assert.equal((await call("GET", `/api/${encodeURIComponent(session.user.id)}/tasks`)).length, 4);

const seen = [];
for await (const page of pages({ limit: "1", sort: "title" })) seen.push(...page.map(({ title }) => title));
assert.deepEqual(seen, ["Buy bread", "Buy milk", "Pay the rent", "Pay the rent"]);

token = "refused";
assert.equal((await call("GET", tasks)).length, 4);
assert.equal(tokens, 2, "a refused token is replaced, once");

token = "refused";
broken.push("refused-as-well");
await assert.rejects(call("GET", tasks), { status: 401, detail: "Invalid token" });
assert.equal(tokens, 3);
token = undefined;

const now = await call("GET", `${tasks}/${task.id}`);
const changed = await change(now, { title: "Buy oat milk" });
assert.equal(changed.title, "Buy oat milk");
assert.equal(await change(now, { title: "Buy soya milk" }), null, "somebody was faster");
await assert.rejects(change(changed, { title: " " }), { status: 422 });

toLose = 1;
const made = await create({ title: "Only once" });
assert.deepEqual([toLose, made.title], [0, "Only once"]);
assert.equal((await call("GET", `${tasks}?q=once`)).length, 1, "the first request had made it");
await assert.rejects(create({ title: " " }), { status: 422 });

const nothing = { operations: [{ op: "delete", id: crypto.randomUUID() }] };
const failed = await call("POST", "/api/me/batch", nothing).catch((error) => error);
assert.deepEqual([failed.status, failed.results[0].status], [409, 404]);

const refused = await call("POST", tasks, { title: " ", priority: "urgent" }).catch((error) => error);
assert.equal(refused.status, 422);
assert.deepEqual(Object.keys(messages(refused.detail)).sort(), ["priority", "title"]);
const empty = await call("POST", tasks, {}).catch((error) => error);
assert.deepEqual(messages(empty.detail), { title: "Field required" });
const unknown = await call("GET", tasks + "?colour=red").catch((error) => error);
assert.deepEqual(Object.keys(messages(unknown.detail)), ["form"]);

assert.equal((await submit(aForm({ title: "From a form" }))).title, "From a form");
const wrong = aForm({ title: "", priority: "urgent" });
await submit(wrong);
assert.ok(wrong.reported && wrong.elements.title.told && wrong.elements.priority.told);

const late = await call("POST", tasks, { title: "Late", due_date: "2001-01-01", tags: ["Home"] });
assert.deepEqual((await due("overdue")).map(({ title }) => title), ["Late", "Pay the rent"]);
assert.deepEqual(await call("GET", "/api/me/tags"), [{ tag: "Home", tasks: 1, open: 1 }]);
assert.equal(await call("DELETE", `${tasks}/${task.id}`), null);

const { error } = await eraseUser(session.user.id);
assert.equal(error?.status, 404, "this server has not enabled deleteUser");
assert.deepEqual(await call("GET", `${tasks}?trashed=true`), []);
assert.deepEqual(await call("GET", "/api/me/history"), []);
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("frontends")
    (made / "node_modules").symlink_to(NODE_MODULES)
    return made


@pytest.fixture(scope="module")
def auth(folder: Path, database_url: str) -> Iterator[BetterAuth]:
    with better_auth(node_with(BETTER_AUTH), folder, database_url) as server:
        yield server


def test_the_code_for_pages(auth: BetterAuth, folder: Path, database_url: str) -> None:
    person = auth.sign_up()
    code = [block.text for block in blocks(PAGE, "js") if "betterAuth(" not in block.text]
    page = "\n".join(code).replace(f'"{API}"', "address").replace('"http://localhost:3000"', "server")
    (folder / "page.mjs").write_text(BROWSER + page + AFTERWARDS)
    with serving(folder, DATABASE_URL=database_url, BETTER_AUTH_URL=auth.url) as service:
        wait_until(lambda: httpx.get(service.address + "/readyz").status_code == 200)
        run(node_with(BETTER_AUTH), "page.mjs", service.address, auth.url, person.email, PASSWORD, folder=folder)


def test_the_code_for_the_better_auth_server(folder: Path) -> None:
    code = [block.text for block in blocks(PAGE, "js") if "betterAuth(" in block.text]
    assert len(code) == 1
    (folder / "server.mjs").write_text(code[0] + "console.log(typeof auth.api.getJwks, typeof auth.api.getToken);\n")
    settings = {
        "BETTER_AUTH_SECRET": "x" * 32,
        "BETTER_AUTH_URL": "http://localhost:3000",
        "BETTER_AUTH_TELEMETRY": "0",
    }
    printed = run(node_with(BETTER_AUTH), "server.mjs", folder=folder, **settings)
    assert printed.splitlines()[-1] == "function function"


def test_the_code_with_generated_types(served: Served, tmp_path: Path) -> None:
    node, client = node_with(GENERATORS), Client(served)
    client.create("Buy milk")
    code = blocks(PAGE, "ts")
    assert len(code) == 1
    (tmp_path / "node_modules").symlink_to(GENERATORS / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    run(str(BINARIES / "openapi-typescript"), f"{served.address}/openapi.json", "-o", "schema.ts", folder=tmp_path)
    prelude = f'const token = "{make_token(client.user)}";\n'
    afterwards = 'if (error || data[0]?.title !== "Buy milk") throw new Error(JSON.stringify(error));\n'
    (tmp_path / "client.ts").write_text(prelude + code[0].text.replace(API, served.address) + afterwards)
    options = ["--strict", "--noUncheckedIndexedAccess", "--skipLibCheck", "--target", "es2022"]
    modules = ["--module", "esnext", "--moduleResolution", "bundler"]
    run(str(BINARIES / "tsc"), *options, *modules, "client.ts", folder=tmp_path)
    run(node, "client.js", folder=tmp_path)
