"""The picture in the README is that of the saved result."""

import xml.etree.ElementTree as ElementTree

from tests.bench.picture import PICTURE, RESULTS, picture


def test_the_picture_shows_the_saved_result() -> None:
    assert PICTURE.read_text() == picture(RESULTS.read_text()), "python -m tests.bench.picture draws it anew"


def test_the_picture_has_the_figures_in_words_and_as_marks() -> None:
    root = ElementTree.fromstring(picture(RESULTS.read_text()))  # noqa: S314  (our own)
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for who in ("this service", "Go + pgx", "Fastify + postgres.js", "FastAPI + SQLModel"):
        assert texts.count(who) == 6, "one bar in each of six groups"
    description = root.find("{http://www.w3.org/2000/svg}desc")
    assert description is not None
    assert (description.text or "").count("a second") == 24
