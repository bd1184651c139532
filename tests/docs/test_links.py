"""Links between the documents, and the files that they name."""

import re

import pytest

from tests.conftest import ROOT
from tests.docs.pages import BLOCK, PAGES, read

DOCUMENTS = [
    *PAGES,
    "CHANGELOG.md",
    *sorted(f"tests/bench/{path.name}" for path in (ROOT / "tests/bench").glob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:service|sql|migrations|tests|docs)/[\w./-]*)`")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: str) -> set[str]:
    """Returns the anchors that GitHub makes of the page's headings."""
    headings = HEADING.findall(BLOCK.sub("", read(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", DOCUMENTS)
def test_links_lead_somewhere(page: str) -> None:
    for link in LINK.findall(BLOCK.sub("", read(page))):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path if path else ROOT / page).resolve()
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(str(target.relative_to(ROOT))), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_are_there(page: str) -> None:
    for path in FILE.findall(read(page)):
        assert (ROOT / path).exists(), f"{page}: {path}"


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(LINK.findall(read("README.md")))
    assert linked >= set(PAGES) - {"README.md"}
