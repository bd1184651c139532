"""The documents and their code blocks: what the tests of this folder share."""

import re
from dataclasses import dataclass
from textwrap import dedent

from tests.conftest import ROOT

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    place: str  # page:line
    language: str
    text: str
    promised: str  # the lines of the text block that follows: a part of what this one prints

    @property
    def page(self) -> str:
        return self.place.partition(":")[0]


def read(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str, *languages: str) -> list[Block]:
    """Returns the page's blocks in these languages, or all of them."""
    text = read(page)
    found = list(BLOCK.finditer(text))
    result = []
    for match, follows in zip(found, [*found[1:], None], strict=False):
        promised = dedent(follows[3]) if follows and follows[2] == "text" else ""
        place = f"{page}:{text.count(chr(10), 0, match.start()) + 1}"
        result.append(Block(place, match[2], dedent(match[3]), promised))
    return [block for block in result if not languages or block.language in languages]


def section(page: str, name: str) -> str:
    """Returns the text below this heading."""
    text = read(page).partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert text, f"{page} has no section {name!r}"
    return text
