"""A server that publishes keys, or what a test wants instead, and the tokens that its keys sign."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.conftest import make_token

Json = dict[str, Any]


@dataclass(frozen=True)
class KeyPair:
    """A key pair under an id, as a Better Auth server has them."""

    id: str
    private: Any
    algorithm: str
    public: Json  # the JWK's fields, without `kid` and `alg`

    @property
    def jwk(self) -> Json:
        return {"alg": self.algorithm, **self.public, "kid": self.id}


def key_pair(key_id: str, algorithm: str = "EdDSA") -> KeyPair:
    """Returns a new key pair for the algorithm."""
    match algorithm:
        case "EdDSA":
            okp = Ed25519PrivateKey.generate()
            return KeyPair(key_id, okp, algorithm, OKPAlgorithm.to_jwk(okp.public_key(), as_dict=True))
        case "ES256" | "ES384" | "ES512":
            curve = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}[algorithm]
            elliptic = ec.generate_private_key(curve)
            return KeyPair(key_id, elliptic, algorithm, ECAlgorithm.to_jwk(elliptic.public_key(), as_dict=True))
    big = rsa.generate_private_key(65537, 2048)
    public = RSAAlgorithm.to_jwk(big.public_key(), as_dict=True)
    return KeyPair(key_id, big, algorithm, {name: public[name] for name in ("kty", "n", "e")})


class Publisher:
    """The server. `keys` is what it publishes, unless `answer` handles the request otherwise."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.keys: list[KeyPair] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = self.publish
        self.paths: list[str] = []  # that were asked for

    def publish(self, request: BaseHTTPRequestHandler) -> None:
        """Answers with the keys, as Better Auth does."""
        send(request, json.dumps({"keys": [key.jwk for key in self.keys]}).encode())

    def token(self, sub: Any, key: KeyPair, **claims: Any) -> str:
        """Returns a token like Better Auth's, signed with the key."""
        named = {"iat": int(time.time()), "iss": self.url, "aud": self.url}
        header = {"kid": key.id}
        return make_token(sub, key=key.private, algorithm=key.algorithm, headers=header, **named | claims)


def send(request: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    """Answers the request."""
    request.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)


@contextmanager
def publishing(port: int = 0) -> Iterator[Publisher]:
    """Runs the server, on a free port unless one is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            publisher.paths.append(self.path)
            try:
                publisher.answer(self)
            except OSError:  # the service has heard enough
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Writes nothing: the base class has a line for each request."""

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        publisher = Publisher(server.server_port)
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield publisher
        finally:
            server.shutdown()
            thread.join()
