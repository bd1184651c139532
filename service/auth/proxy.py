"""Finds the proxy for a URL in HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY (in all its forms)."""

import re
from ipaddress import ip_address, ip_network
from urllib.request import getproxies_environment

import httpx


class UnusableProxy(Exception):
    """The URL's proxy cannot be used; the message is for the log."""


def proxy_for(url: str) -> httpx.Proxy | None:
    """Returns the URL's proxy; None when there is none, or NO_PROXY exempts the host.

    Raises UnusableProxy. Variables that do not concern this URL are not read.
    """
    target = httpx.URL(url)
    proxies = getproxies_environment()  # ignores HTTP_PROXY in CGI, where it is a request header
    text = proxies.get(target.scheme) or proxies.get("all")
    if not text or _is_exempt(target, proxies.get("no", "")):
        return None
    variable = f"{target.scheme.upper()}_PROXY or ALL_PROXY"
    try:
        proxy = httpx.Proxy(text if "://" in text else f"http://{text}")
    except (ValueError, httpx.InvalidURL):
        raise UnusableProxy(f"the proxy of {variable} is no http:// or https:// URL") from None
    if proxy.url.scheme not in ("http", "https") or not proxy.url.host:
        raise UnusableProxy(
            f"the proxy of {variable} is {proxy.url.scheme}://{proxy.url.host}, and only http:// and https:// can be "
            f"used; NO_PROXY={target.host} goes without"
        )
    return proxy


def _is_exempt(target: httpx.URL, no_proxy: str) -> bool:
    """Returns whether an entry of NO_PROXY matches the host; ignores invalid entries.

    An entry is a name (which includes its subdomains, with or without a leading `.` or `*.`), an address, a network, or
    `*`; a name or an address may have a port.
    """
    host, port = target.host.lower(), target.port or {"http": 80, "https": 443}[target.scheme]
    for entry in re.split(r"[\s,;]+", no_proxy.lower()):
        name = re.sub(r"^\w+://", "", entry)
        has_port = re.fullmatch(r"(\[.*\]|[^:]*):(\d+)", name)
        if has_port:
            name = has_port[1]
            if int(has_port[2]) != port:
                continue
        name = name.strip("[]")
        if name == "*" or (name and _matches(name, host)):
            return True
    return False


def _matches(name: str, host: str) -> bool:
    try:
        return ip_address(host) in ip_network(name, strict=False)
    except (ValueError, TypeError):  # one of them is a name
        bare = name.removeprefix("*").strip(".")
        return bare != "" and (host.rstrip(".") == bare or host.rstrip(".").endswith(f".{bare}"))
