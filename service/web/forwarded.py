"""The headers of a reverse proxy: X-Forwarded-Proto and X-Forwarded-Prefix.

uvicorn's ProxyHeadersMiddleware supports no prefix, no list of schemes, and no IPv4 address on an IPv6 socket.
"""

from contextlib import suppress
from ipaddress import ip_address, ip_network

from starlette.types import Scope

from service.settings import path_prefix

FORWARDED = (b"x-forwarded-proto", b"x-forwarded-prefix")


class Proxies:
    """The trusted proxies: comma-separated addresses and networks, or `*` for any client."""

    def __init__(self, allowed: str) -> None:
        self._all = allowed == "*"
        self._networks = [] if self._all else [ip_network(part.strip()) for part in allowed.split(",")]

    def trusts(self, client: tuple[str, int] | None) -> bool:
        """Returns whether the client is one of them; a Unix socket has no client address."""
        if self._all or client is None:
            return self._all
        try:
            address = ip_address(client[0])
        except ValueError:
            return False
        plain = getattr(address, "ipv4_mapped", None) or address
        return any(plain in network or address in network for network in self._networks)


def use_forwarded(scope: Scope) -> None:
    """Copies scheme and prefix from the headers into the scope; ignores invalid ones.

    Of several schemes the leftmost counts, which the client used.
    """
    headers = {name: value.decode("latin-1") for name, value in reversed(scope["headers"]) if name in FORWARDED}
    scheme = headers.get(FORWARDED[0], "").partition(",")[0].strip().lower()
    if scheme in ("http", "https"):
        scope["scheme"] = scheme
    with suppress(ValueError):
        scope["prefix"] = path_prefix(headers.get(FORWARDED[1], "").strip())
