"""What a request depends on: the versions of If-Match and If-None-Match, and its Idempotency-Key."""

import re

from starlette.requests import Request

from service.web.errors import invalid, shown

# RFC 9110, section 8.8.3, but that whether a tag is weak makes no difference here
_TAG = r'[ \t]*(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"[ \t]*'
ENTITY_TAGS = re.compile(f"{_TAG}(?:,{_TAG})*")
# A tag that is a version, and what those who compress on the way append to it: "7-gzip" is Apache's and lighttpd's,
# "7--gzip" Jetty's, others use other signs. Apache has been seen to append it at each turn.
VERSION_TAG = re.compile(
    r'"(0|[1-9][0-9]*)(?:[-;:.,/+_~]{1,2}(?:x-)?(?:gzip|gz|br|brotli|zstd|zst|deflate|compress|bzip2|dcb|dcz|identity))*"',
    re.IGNORECASE,
)
KEY = re.compile(rb"[\x21-\x7e]{1,255}")


def if_none_match(request: Request) -> list[str] | None:
    """Returns the versions that If-None-Match lists, or `*`; None when it was not sent.

    What is no version matches nothing, so that the answer is the whole one, which is always right.
    """
    sent = _sent(request, b"if-none-match")
    if not sent:
        return None
    text = b",".join(sent).decode("latin-1")
    return ["*"] if text.strip() == "*" else VERSION_TAG.findall(text)


def if_match(request: Request) -> list[str] | None:
    """Returns the versions that If-Match lists; None when any will do: it says `*`, or was not sent.

    A tag that is no version is left out: it matches nothing. Raises Problem, a 422, when the header is no list of tags:
    whoever makes a change depend on something must not have it made regardless.
    """
    sent = _sent(request, b"if-match")
    if not sent:
        return None
    text = b",".join(sent).decode("latin-1")
    if text.strip(" \t") == "*":
        return None
    if not ENTITY_TAGS.fullmatch(text):
        message = f'Should be * or quoted versions like "7" or "7", "9", not {shown(text)}'
        raise invalid(["header", "If-Match"], message, "if_match")
    return VERSION_TAG.findall(text)


def idempotency_key(request: Request) -> str | None:
    """Returns the Idempotency-Key, or None when it was not sent; raises Problem, a 422."""
    sent = _sent(request, b"idempotency-key")
    if not sent:
        return None
    if len(sent) > 1:
        raise invalid(["header", "Idempotency-Key"], "Should be sent once", "idempotency_key")
    if not KEY.fullmatch(sent[0]):
        message = f"Should be 1 to 255 visible ASCII characters, not {shown(sent[0].decode('latin-1'))}"
        if len(sent[0]) > 255:
            message += f", which are {len(sent[0])}"
        raise invalid(["header", "Idempotency-Key"], message, "idempotency_key")
    key: str = sent[0].decode("ascii")
    return key


def _sent(request: Request, header: bytes) -> list[bytes]:
    """Returns the header's values, one for each time that it was sent; without a Headers object for one look."""
    return [value for name, value in request.scope["headers"] if name == header]
