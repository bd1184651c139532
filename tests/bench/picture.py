"""The result as a picture for the README: requests per second of each peer, drawn from the saved tables.

python -m tests.bench.picture draws it anew from RESULTS.md, without a measurement.
"""

import re
from html import escape

from tests.bench.peers import HERE, ROOT

RESULTS = HERE / "RESULTS.md"
PICTURE = ROOT / "docs" / "speed.svg"

SHOWN = {  # in reading order, in two columns
    "one": "Read one task",
    "list": "List 50 tasks",
    "mix": "Mix, 80 % reads",
    "create": "Create",
    "complete": "Complete",
    "update": "Update",
}
NO_PEERS = ("empty Starlette route", "pgbench")  # the limits of the server and of the database: they do other work
HEADING = re.compile(r"^### (\w+), (\d+) connections?$", re.MULTILINE)
ROW = re.compile(r"^\| ([^|]+) \| ([\d,]+) \([^|]*\) \| [^|]+ \| ([\d.]+) \|", re.MULTILINE)

WIDTH, COLUMN, MARGIN = 860, 420, 20
NAME, BAR, LINE, GROUP_GAP, TOP, BOTTOM = 140, 150, 19, 30, 62, 30
# A card of its own colour is behind the text, so that it can be read whatever the page around it looks like.
STYLE = """
  text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328 }
  .title { font-size: 15px; font-weight: 600 } .group { font-weight: 600 } .note { fill: #59636e }
  .card { fill: #ffffff; stroke: #d1d9e0 } .bar { fill: #9aa4af } .first .bar { fill: #0969da }
  .first text { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .note { fill: #9198a1 }
    .card { fill: #0d1117; stroke: #3d444d } .bar { fill: #656c76 } .first .bar { fill: #4493f8 }
  }
"""

Row = tuple[str, int, float]  # who, requests per second, p99 in milliseconds


def draw() -> None:
    """Draws the saved result."""
    PICTURE.write_text(picture(RESULTS.read_text()))


def picture(results: str) -> str:
    """Returns the tables as SVG, at the first number of connections; the description has the figures in words."""
    parts = HEADING.split(results)[1:]
    connections = parts[1]
    found: dict[str, list[Row]] = {}
    for workload, _, table in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        rows = [(who, int(speed.replace(",", "")), float(p99)) for who, speed, p99 in ROW.findall(table)]
        found.setdefault(workload, [row for row in rows if row[0] not in NO_PEERS])
    groups = [(title, found[workload]) for workload, title in SHOWN.items() if workload in found]
    per_column = (len(groups) + 1) // 2
    most = max(speed for _, rows in groups for _, speed, _ in rows)
    heights = [GROUP_GAP + LINE * len(rows) for _, rows in groups]
    height = TOP + max(sum(heights[:per_column]), sum(heights[per_column:])) + BOTTOM
    marks: list[str] = []
    for index, (title, rows) in enumerate(groups):
        column, place = divmod(index, per_column)
        x, y = MARGIN + column * COLUMN, TOP + sum(heights[column * per_column :][:place])
        marks.append(f'<text class="group" x="{x}" y="{y + 16}">{escape(title)}</text>')
        marks += [_bar(row, most, x, y + 24 + LINE * line, is_first=line == 0) for line, row in enumerate(rows)]
    told = "; ".join(
        f"{title}: " + ", ".join(f"{who} {speed:,} a second, p99 {p99:.0f} ms" for who, speed, p99 in rows)
        for title, rows in groups
    )
    note = f"One process each, {connections} connections, the same PostgreSQL; the machine is shared with the load"
    below = "Longer bars are better. Conditions and all figures: tests/bench/RESULTS.md"
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">
<title>Requests per second of the service and its peers</title>
<desc>{escape(told)}</desc>
<style>{STYLE}</style>
<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>
<text class="title" x="{MARGIN}" y="30">Requests per second, and the 99th percentile of the answer times</text>
<text class="note" x="{MARGIN}" y="49">{note}</text>
{chr(10).join(marks)}
<text class="note" x="{MARGIN}" y="{height - 14}">{below}</text>
</svg>
"""


def _bar(row: Row, most: int, x: int, y: int, *, is_first: bool) -> str:
    who, speed, p99 = row
    length = max(1, round(BAR * speed / most))
    return (
        f'<g class="{"first" if is_first else "peer"}"><text x="{x}" y="{y + 12}">{escape(who)}</text>'
        f'<rect class="bar" x="{x + NAME}" y="{y + 1}" width="{length}" height="14" rx="2"/>'
        f'<text x="{x + NAME + length + 6}" y="{y + 12}">{speed:,} · {p99:.0f} ms</text></g>'
    )


if __name__ == "__main__":
    draw()
