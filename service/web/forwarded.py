"""What a proxy in front says of the request that it passes on: X-Forwarded-Proto and X-Forwarded-Prefix.

uvicorn's ProxyHeadersMiddleware knows no prefix, no list of schemes, and no IPv4 address on a socket of IPv6.
"""

from contextlib import suppress
from ipaddress import ip_address, ip_network

from starlette.types import Scope

from service.settings import path_prefix

FORWARDED = (b"x-forwarded-proto", b"x-forwarded-prefix")


class Proxies:
    """The proxies that are trusted: comma-separated addresses and networks, or `*` for whoever connects."""

    def __init__(self, allowed: str) -> None:
        self._all = allowed == "*"
        self._networks = [] if self._all else [ip_network(part.strip()) for part in allowed.split(",")]

    def trusts(self, client: tuple[str, int] | None) -> bool:
        """Whether the connection comes from one of them; it has no client on a Unix socket."""
        if self._all or client is None:
            return self._all
        try:
            address = ip_address(client[0])
        except ValueError:
            return False
        plain = getattr(address, "ipv4_mapped", None) or address
        return any(plain in network or address in network for network in self._networks)


def use_forwarded(scope: Scope) -> None:
    """Puts into the scope what the headers say; what makes no sense in them is ignored.

    Of several schemes the leftmost counts: it is the one that the client used.
    """
    headers = {name: value.decode("latin-1") for name, value in reversed(scope["headers"]) if name in FORWARDED}
    scheme = headers.get(FORWARDED[0], "").partition(",")[0].strip().lower()
    if scheme in ("http", "https"):
        scope["scheme"] = scheme
    with suppress(ValueError):
        scope["prefix"] = path_prefix(headers.get(FORWARDED[1], "").strip())
