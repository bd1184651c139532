"""HTTP/1.1 as it comes (RFC 9112): a request's head, which llhttp reads, and where its body ends, which is found here.

A head is given to llhttp only when it is there whole, and a body never: so nothing that a body holds can be taken for a
request, whatever llhttp makes of an offer to upgrade, and there is no state in it that could get out of step.
"""

import re
from typing import Protocol as Interface

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url

from service.web.errors import Problem

EXTENSION_BYTES = 4 * 1024  # of one chunk; nobody is known to send any
LINE_BYTES = EXTENSION_BYTES + 30  # with the chunk's size and line ends
TRAILER_BYTES = 32 * 1024  # as much as headers may have

WATCHED = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))

_SIZE = rb"([0-9A-Fa-f]{1,16})(?:[ \t]{0,9};[\t\x20-\x7e\x80-\xff]{0,%d})?\r\n" % EXTENSION_BYTES
FIRST_SIZE = re.compile(_SIZE)
NEXT_SIZE = re.compile(rb"\r\n" + _SIZE)  # with the end of the chunk before it
TRAILERS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n)*+\r\n")


class Head:
    """A request's line and headers."""

    def __init__(self, data: bytes) -> None:
        """Reads what ends with the first empty line. Raises Problem, a 400."""
        self.headers: list[tuple[bytes, bytes]] = []
        self._url = b""
        self._watched: list[tuple[bytes, bytes]] = []
        self._read(data)
        self._find_target()
        self._find_framing()

    def _read(self, data: bytes) -> None:
        self._parser = parser = HttpRequestParser(self)
        try:
            parser.feed_data(data)
        except HttpParserUpgrade:
            pass  # an offer, which RFC 9110 (7.8) allows to ignore
        except HttpParserError as error:
            raise bad_request(str(error)) from None
        finally:
            del self._parser  # it holds this object
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
        self.keep_alive = self._parser.should_keep_alive()  # it knows no longer when the message is complete

    def _find_target(self) -> None:
        try:
            target = parse_url(self._url)
            self.raw_path: bytes = target.path
            self.path = self.raw_path.decode("ascii")
        except (HttpParserError, UnicodeDecodeError, AttributeError):  # a target without a path: None
            raise bad_request("the target has no path, or characters that must be encoded") from None
        self.query: bytes = target.query or b""

    def _find_framing(self) -> None:
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
        self.body = _framed(framing, self.version) if framing else None


class Body(Interface):
    """What is to come of a body."""

    missing: int  # bytes, as far as that is known
    is_whole: bool

    def take(self, data: bytes, most: int) -> tuple[bytes, int]:
        """Returns what the data hold of the body, and how many of the data that took, hardly more than `most`.

        Takes nothing when it has to see more first. Raises Problem, a 400.
        """


class Length:
    """A body whose length is declared."""

    __slots__ = ("is_whole", "missing")

    def __init__(self, length: int) -> None:
        self.missing = length
        self.is_whole = False

    def take(self, data: bytes, most: int) -> tuple[bytes, int]:
        """See Body."""
        part = data[: min(self.missing, most)]
        self.missing -= len(part)
        self.is_whole = self.missing == 0
        return part, len(part)


class Chunks:
    """A body that comes in chunks (RFC 9112, 7.1). Extensions and trailers are read and dropped."""

    __slots__ = ("_has_ended", "_left", "_size", "is_whole", "missing")

    def __init__(self) -> None:
        self.missing = 0
        self.is_whole = False
        self._left = 0  # bytes of this chunk
        self._size = FIRST_SIZE
        self._has_ended = False  # but for the trailers

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
            elif self._has_ended:
                at = self._after_trailers(data, at)
                break
            elif found := size.match(data, at):
                at = found.end()
                left = int(found[1], 16)
                size = NEXT_SIZE
                self._has_ended = left == 0
            else:
                _check_part_of_a_size(data, at, is_first=size is FIRST_SIZE)
                break
        self._left, self._size = left, size
        return b"".join(parts), at

    def _after_trailers(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            self.is_whole = True
            return at + len(b"\r\n")
        end = data.find(b"\r\n\r\n", at, at + TRAILER_BYTES) + len(b"\r\n\r\n")
        if end < at + len(b"\r\n\r\n"):
            if len(data) - at >= TRAILER_BYTES:
                raise bad_request(f"trailers have at most {TRAILER_BYTES} bytes")
            return at
        if not TRAILERS.fullmatch(data, at, end):
            raise bad_request("what follows the last chunk is neither a trailer nor an empty line")
        self.is_whole = True
        return end


def _framed(framing: list[tuple[bytes, bytes]], version: str) -> Body | None:
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


def check_beginning(data: bytes) -> HttpRequestParser:
    """Returns the parser that has seen the beginning of a head, and takes what follows. Raises Problem, a 400."""
    parser = HttpRequestParser(None)  # nothing is kept: only what the head is made of is of interest
    check_more(parser, data)
    return parser


def check_more(parser: HttpRequestParser, data: bytes) -> None:
    """Looks at the next bytes of a head that has no end yet. Raises Problem, a 400."""
    try:
        parser.feed_data(data)
    except HttpParserError as error:
        raise bad_request(str(error)) from None


def bad_request(reason: str) -> Problem:
    """Returns the 400 for what is no HTTP/1.1 request."""
    return Problem(400, f"No HTTP/1.1 request: {reason}")
