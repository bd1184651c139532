"""Tags: how they are written, and which are alike."""

from unicodedata import normalize

MOST = 20  # of a task
LONGEST = 50  # characters
ACCEPTED = (
    f"1 to {LONGEST} characters without commas and NUL; surrounding white space is trimmed before they are counted"
)
LETTERS = 4  # characters at most become one in NFC
# Unicode's White_Space; Python's strip() would also take the separators \x1c to \x1f
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def written(tag: str) -> str:
    """Returns the tag as it is stored: trimmed, in NFC. Raises ValueError, with what is accepted."""
    tag = tag.strip(WHITE_SPACE)
    if len(tag) <= LETTERS * LONGEST:  # of thousands of marks, NFC takes seconds
        tag = normalize("NFC", tag)
    if not 1 <= len(tag) <= LONGEST or "," in tag or "\0" in tag:
        raise ValueError(ACCEPTED)
    return tag


def key(tag: str) -> str:
    """Returns what two tags have in common that are alike; `tasks.tag_key()` is the same in the database."""
    return normalize("NFD", tag).casefold()
