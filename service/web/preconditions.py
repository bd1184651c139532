"""The headers If-Match, If-None-Match and Idempotency-Key."""

import re

from starlette.requests import Request

from service.web.errors import invalid, shown

# RFC 9110, section 8.8.3; weak and strong tags are treated alike
_TAG = r'[ \t]*(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"[ \t]*'
ENTITY_TAGS = re.compile(f"{_TAG}(?:,{_TAG})*")
# A tag that is a version, with the suffixes of proxies that compress: "7-gzip" is from Apache and lighttpd, "7--gzip"
# from Jetty, others use other separators. Apache may append it repeatedly.
VERSION_TAG = re.compile(
    r'"(0|[1-9][0-9]*)(?:[-;:.,/+_~]{1,2}(?:x-)?(?:gzip|gz|br|brotli|zstd|zst|deflate|compress|bzip2|dcb|dcz|identity))*"',
    re.IGNORECASE,
)
KEY = re.compile(rb"[\x21-\x7e]{1,255}")


def if_none_match(request: Request) -> list[str] | None:
    """Returns the versions that If-None-Match lists, or `*`; None when it was not sent.

    A tag that is no version matches nothing: the full response is always right.
    """
    sent = _sent(request, b"if-none-match")
    if not sent:
        return None
    text = b",".join(sent).decode("latin-1")
    return ["*"] if text.strip() == "*" else VERSION_TAG.findall(text)


def if_match(request: Request) -> list[str] | None:
    """Returns the versions that If-Match lists; None when any version matches: it is `*`, or was not sent.

    A tag that is no version matches nothing. Raises Problem, a 422, when the header is no list of tags: a conditional
    change must not become unconditional.
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
    """Returns the values of all fields with this name; a Headers object costs more than it saves here."""
    return [value for name, value in request.scope["headers"] if name == header]
