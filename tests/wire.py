"""One connection, on which the test itself chooses every byte."""

import http.client
import socket
import time
from email.message import Message
from typing import BinaryIO

WAIT = 10  # seconds for an answer; the longest that is meant to be waited for takes 5


class Wire:
    """A client's end of a connection."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(WAIT)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received: BinaryIO = self.socket.makefile("rb")

    def send(self, *parts: bytes) -> None:
        """Sends the parts, each in a packet of its own."""
        for part in parts:
            self.socket.sendall(part)
            if len(parts) > 1:
                time.sleep(0.002)

    def answer(self, *, body: bool = True) -> tuple[int, Message, bytes]:
        """Returns the next answer's status, headers and body."""
        line = self.received.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers = http.client.parse_headers(self.received)
        content = b""
        if body and headers["Transfer-Encoding"] == "chunked":
            content = self._chunks()
        elif body:
            content = self.received.read(int(headers.get("Content-Length", 0)))
        return int(line.split()[1]), headers, content

    def _chunks(self) -> bytes:
        content = b""
        while size := int(self.received.readline(), 16):
            content += self.received.read(size)
            assert self.received.read(2) == b"\r\n"
        assert self.received.read(2) == b"\r\n"
        return content

    def rest(self) -> bytes:
        """Returns everything until the service closes the connection."""
        return self.received.read()

    def is_closed(self) -> bool:
        """Reads until the connection is closed, or reset; fails when that takes too long."""
        try:
            while self.received.read(65536):
                pass
        except ConnectionError:
            pass
        return True

    def close(self) -> None:
        """Closes it."""
        self.received.close()
        self.socket.close()


def in_chunks(body: bytes, size: int = 10_000) -> bytes:
    """Returns the body as chunks of this size."""
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])
