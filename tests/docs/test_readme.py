"""The README: short, and a tour that says what it shows. test_blocks.py runs it."""

import pytest

from tests.docs.pages import blocks, read, section

pytestmark = pytest.mark.slow


def test_it_is_short() -> None:
    assert len(read("README.md").encode()) <= 8 * 1024


def test_each_block_of_the_tour_says_what_it_shows() -> None:
    tour = section("README.md", "Tour with curl")
    found = [block for block in blocks("README.md", "sh") if block.text in tour]
    assert len(found) > 5
    assert all(block.promised for block in found[1:]), "but for the names"
