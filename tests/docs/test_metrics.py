"""The metrics, queries and alerts of docs/operations.md are those of the service, and Prometheus takes them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from service.web.metrics import FAMILIES
from tests.docs.pages import blocks, section

SUFFIXES = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",), "gauge": ("",)}
SAMPLES = {
    name + suffix: {*family.labels, *(("le",) if suffix == "_bucket" else ())}
    for name, family in FAMILIES.items()
    for suffix in SUFFIXES[family.type]
}
PROMETHEUS_OWN = {"job", "instance"}


def text() -> str:
    return section("docs/operations.md", "Metrics")


def queries() -> list[str]:
    rows = re.findall(r"^\| [^|]+ \| (`.+`) \|$", text(), re.MULTILINE)
    in_tables = [query.replace("\\|", "|") for row in rows for query in re.findall("`([^`]+)`", row) if "(" in query]
    (rules,) = blocks("docs/operations.md", "yaml")
    in_alerts = re.findall(r"expr: >?((?:.|\n)*?)\n        for:", rules.text)
    return in_tables + in_alerts


def test_the_table_has_every_metric_with_its_type_and_labels() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+)(?:; (`[^|]+`))? \|", text(), re.MULTILINE)
    told = {name: (kind, tuple(re.findall(r"\w+", labels))) for name, kind, labels in rows}
    assert told == {
        name + ("_total" if family.type == "counter" else ""): (family.type, family.labels)
        for name, family in FAMILIES.items()
    }


def test_queries_and_alerts_ask_for_what_there_is() -> None:
    assert len(queries()) == 17
    for query in queries():
        names = set(
            re.findall(
                r"\b(?:http|db|task|process)_\w+", re.sub(r"(?:by )?\((?:\w+(?:, )?)+\)(?= \()|\{.*?\}", "", query)
            )
        )
        names -= {label for labels in SAMPLES.values() for label in labels}
        assert names <= SAMPLES.keys(), query
        for name, labels in re.findall(r"\b(\w+)\{([^}]*)\}", query):
            known = SAMPLES.get(name, set()) | PROMETHEUS_OWN
            assert set(re.findall(r"(\w+)(?:=|!=|=~|!~)\"", labels)) <= known, query
        for grouped in re.findall(r"by \(([^)]*)\)", query):
            assert set(grouped.split(", ")) <= set().union(*(SAMPLES[name] for name in names)), query


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool")
def test_prometheus_takes_queries_and_alerts(tmp_path: Path) -> None:
    (alerts,) = blocks("docs/operations.md", "yaml")
    (tmp_path / "alerts.yml").write_text(alerts.text)
    records = [
        f"      - record: query_{number}\n        expr: >\n          {' '.join(query.split())}\n"
        for number, query in enumerate(queries())
    ]
    (tmp_path / "queries.yml").write_text("groups:\n  - name: queries\n    rules:\n" + "".join(records))
    checked = subprocess.run(
        ["promtool", "check", "rules", "alerts.yml", "queries.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert "5 rules found" in checked.stdout
    assert "17 rules found" in checked.stdout
