"""HTTP/1.1 message framing (RFC 9112): llhttp parses the request head, and the end of the body is found here.

llhttp gets only complete heads and never a body. So no part of a body can be taken for a request, whatever llhttp does
about an upgrade, and no parser state can get out of step.
"""

import re
from typing import Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url

from service.web.errors import Problem

EXTENSION_BYTES = 4 * 1024  # of one chunk; no client is known to send any
LINE_BYTES = EXTENSION_BYTES + 30  # with the chunk's size and line breaks
TRAILER_BYTES = 32 * 1024  # the same as for headers

WATCHED = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))

_SIZE = rb"([0-9A-Fa-f]{1,16})(?:[ \t]{0,9};[\t\x20-\x7e\x80-\xff]{0,%d})?\r\n" % EXTENSION_BYTES
FIRST_SIZE = re.compile(_SIZE)
NEXT_SIZE = re.compile(rb"\r\n" + _SIZE)  # with the line break after the previous chunk
TRAILERS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n)*+\r\n")


class RequestHead:
    """The request line and headers."""

    def __init__(self, data: bytes) -> None:
        """Parses everything up to the first empty line. Raises Problem, a 400."""
        self.headers: list[tuple[bytes, bytes]] = []
        self._url = b""
        self._watched: list[tuple[bytes, bytes]] = []
        self._read(data)
        self._parse_target()
        self._parse_framing()

    def _read(self, data: bytes) -> None:
        self._parser = parser = HttpRequestParser(self)
        try:
            parser.feed_data(data)
        except HttpParserUpgrade:
            pass  # RFC 9110 (7.8) allows ignoring the offer
        except HttpParserError as error:
            raise bad_request(str(error)) from None
        finally:
            del self._parser  # breaks the reference cycle
        end = data.find(b"\r\n")
        version = data[end - 9 : end]
        if version not in (b" HTTP/1.1", b" HTTP/1.0"):
            raise bad_request("only HTTP/1.1 and HTTP/1.0 are spoken here")
        self.version = "1.1" if version == b" HTTP/1.1" else "1.0"
        self.method = parser.get_method().decode("ascii")
        if self.method == "CONNECT":
            raise bad_request("this is no proxy")

    def on_url(self, part: bytes) -> None:
        """Called by llhttp."""
        self._url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by llhttp."""
        name = name.lower()
        self.headers.append((name, value))
        if name in WATCHED:
            self._watched.append((name, value))

    def on_headers_complete(self) -> None:
        """Called by llhttp."""
        self.keep_alive = self._parser.should_keep_alive()  # unknown once the message is complete

    def _parse_target(self) -> None:
        try:
            target = parse_url(self._url)
            self.raw_path: bytes = target.path
            self.path = self.raw_path.decode("ascii")
        except (HttpParserError, UnicodeDecodeError, AttributeError):  # AttributeError: no path
            raise bad_request("the target has no path, or characters that must be encoded") from None
        self.query: bytes = target.query or b""

    def _parse_framing(self) -> None:
        hosts = 0
        framing = []
        self.expects_continue = False
        for name, value in self._watched:
            if name == b"host":
                hosts += 1
            elif name == b"expect":
                self.expects_continue = value.lower() == b"100-continue" and self.version == "1.1"
            else:
                framing.append((name, value))
        if hosts > 1 or (hosts == 0 and self.version == "1.1"):
            raise bad_request(f"exactly one Host header is needed, not {hosts}")
        self.body = _body(framing, self.version) if framing else None


class Body(Protocol):
    """The part of a body that is still to be received."""

    remaining: int  # bytes, as far as known
    is_complete: bool

    def take(self, data: bytes, most: int) -> tuple[bytes, int]:
        """Returns a part of the body and how many bytes of the data it took, hardly more than `most`.

        Takes nothing when it needs more data first. Raises Problem, a 400.
        """


class Length:
    """A body with Content-Length."""

    __slots__ = ("is_complete", "remaining")

    def __init__(self, length: int) -> None:
        self.remaining = length
        self.is_complete = False

    def take(self, data: bytes, most: int) -> tuple[bytes, int]:
        """See Body."""
        part = data[: min(self.remaining, most)]
        self.remaining -= len(part)
        self.is_complete = self.remaining == 0
        return part, len(part)


class Chunks:
    """A chunked body (RFC 9112, 7.1). Extensions and trailers are parsed and discarded."""

    __slots__ = ("_has_last_chunk", "_left", "_size", "is_complete", "remaining")

    def __init__(self) -> None:
        self.remaining = 0
        self.is_complete = False
        self._left = 0  # bytes of the current chunk
        self._size = FIRST_SIZE
        self._has_last_chunk = False

    def take(self, data: bytes, most: int) -> tuple[bytes, int]:
        """See Body."""
        parts: list[bytes] = []
        at, left, size = 0, self._left, self._size
        while at < most:
            if left:
                part = data[at : at + min(left, most)]
                parts.append(part)
                at += len(part)
                left -= len(part)
                if not part:
                    break
            elif self._has_last_chunk:
                at = self._after_trailers(data, at)
                break
            elif found := size.match(data, at):
                at = found.end()
                left = int(found[1], 16)
                size = NEXT_SIZE
                self._has_last_chunk = left == 0
            else:
                _check_part_of_a_size(data, at, is_first=size is FIRST_SIZE)
                break
        self._left, self._size = left, size
        return b"".join(parts), at

    def _after_trailers(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            self.is_complete = True
            return at + len(b"\r\n")
        end = data.find(b"\r\n\r\n", at, at + TRAILER_BYTES) + len(b"\r\n\r\n")
        if end < at + len(b"\r\n\r\n"):
            if len(data) - at >= TRAILER_BYTES:
                raise bad_request(f"trailers have at most {TRAILER_BYTES} bytes")
            return at
        if not TRAILERS.fullmatch(data, at, end):
            raise bad_request("what follows the last chunk is neither a trailer nor an empty line")
        self.is_complete = True
        return end


def _body(framing: list[tuple[bytes, bytes]], version: str) -> Body | None:
    if len(framing) > 1:
        raise bad_request("Content-Length and Transfer-Encoding: one of them, once")
    ((name, value),) = framing
    if name == b"transfer-encoding":
        if value.lower() != b"chunked" or version == "1.0":
            raise bad_request("the only Transfer-Encoding understood is chunked, with HTTP/1.1")
        return Chunks()
    if not value.isdigit():
        raise bad_request("Content-Length is no number")
    return Length(int(value)) if int(value) else None


def _check_part_of_a_size(data: bytes, at: int, *, is_first: bool) -> None:
    if data.find(b"\n", at if is_first else at + len(b"\r\n"), at + LINE_BYTES) >= 0:
        raise bad_request("a chunk begins with its size, a hexadecimal number, and its data end with CRLF")
    if len(data) - at >= LINE_BYTES:
        raise bad_request(f"a chunk's extensions have at most {EXTENSION_BYTES} bytes")


def check_start(data: bytes) -> HttpRequestParser:
    """Checks the start of an incomplete head; returns the parser for check_more. Raises Problem, a 400."""
    parser = HttpRequestParser(None)  # it only checks the syntax
    check_more(parser, data)
    return parser


def check_more(parser: HttpRequestParser, data: bytes) -> None:
    """Checks the next bytes of an incomplete head. Raises Problem, a 400."""
    try:
        parser.feed_data(data)
    except HttpParserError as error:
        raise bad_request(str(error)) from None


def bad_request(reason: str) -> Problem:
    """Returns the 400 for a malformed request."""
    return Problem(400, f"No HTTP/1.1 request: {reason}")
