"""uvicorn's HTTP protocol, with this API's answers where uvicorn itself refuses what is no request."""

import json
from secrets import token_hex
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 256 * 1024  # of a request line and headers that do not end; beyond the limit that Edge has an answer for


class Protocol(HttpToolsProtocol):
    """The protocol of one connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Takes what the client sent; ends the connection when its headers seem to have no end."""
        super().data_received(data)
        if self.scope is None or "method" in self.scope:
            self._head_bytes = 0  # the usual case: a request's head comes in one piece
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("Request headers too large")

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP request, as JSON and with the headers that every answer has; ends the connection."""
        body = json.dumps({"detail": msg}).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n"
            f"x-request-id: {token_hex(16)}\r\n"
            "x-content-type-options: nosniff\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
