"""The rooms of `service/`: what each of them may use."""

import ast

from tests.conftest import ROOT

SERVICE = ROOT / "service"
PURE = {"models", "recurrence", "tags", "zones"}
MAY_USE = {
    "db": set(),
    "queries": {"db"} | PURE,
    "web": {"queries", "db", "settings"} | PURE,
    "auth": {"web"} | PURE,
    "routes": {"auth", "web", "queries", "db"} | PURE,
} | {f"{module}.py": PURE for module in PURE}


def test_imports_go_one_way() -> None:
    for room, others in MAY_USE.items():
        paths = [*(SERVICE / room).rglob("*.py")] or [SERVICE / room]
        for path in paths:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "service":
                    used = set(node.module.split(".")[1:2]) or {alias.name for alias in node.names}
                    assert used <= others | {room}, f"{path.relative_to(ROOT)}: {node.module}"
