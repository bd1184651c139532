"""Connects asyncpg the way libpq connects: host by host, each with its own timeout, with TLS as sslmode says."""

import random
import socket
import ssl
from typing import Any

import asyncpg

from service.db.address import NOWHERE, Address, Host

CONNECT_SECONDS = 3  # for all hosts together; a connect_timeout in the address is for each host
LEAST_SECONDS = 1  # for each host

# On these libpq tries the next host; not when a host rejects the user
NEXT_HOST = (OSError, asyncpg.CannotConnectNowError, asyncpg.InternalClientError, asyncpg.ConnectionDoesNotExistError)
# On these libpq tries the same host again, with or without TLS, if sslmode is allow or prefer
NEXT_WAY = (
    ConnectionError,
    ssl.SSLError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.ConnectionDoesNotExistError,
)

# libpq's options, the system's names and the defaults. These detect a dead connection within half a minute when it is
# idle, and within the deadline of a request when it is in use.
KEEPALIVES = {
    "keepalives_idle": ("TCP_KEEPIDLE", 10),  # seconds
    "keepalives_interval": ("TCP_KEEPINTVL", 5),
    "keepalives_count": ("TCP_KEEPCNT", 3),
    "tcp_user_timeout": ("TCP_USER_TIMEOUT", 3000),  # milliseconds
}


async def connect(address: Address, tls: ssl.SSLContext | None, **options: Any) -> Any:
    """Returns an asyncpg connection to the first host that has the requested target_session_attrs.

    The options are asyncpg's; `tls` is what address.tls() returned. Raises the last host's error.
    """
    hosts = list(address.hosts)
    if address.options.get("load_balance_hosts") == "random":
        random.shuffle(hosts)
    seconds = int(address.options.get("connect_timeout", 0)) or max(CONNECT_SECONDS / len(hosts), LEAST_SECONDS)
    wanted = address.options.get("target_session_attrs", "any")
    attempts = [
        (attributes, host)
        for attributes in (["standby", "any"] if wanted == "prefer-standby" else [wanted])
        for host in hosts
    ]
    for number, (attributes, host) in enumerate(attempts, 1):
        try:
            connection = await _connect_to(
                host, address, tls, timeout=seconds, target_session_attrs=attributes, **options
            )
        except NEXT_HOST:
            if number == len(attempts):
                raise
        else:
            if not host.is_socket:
                _keep_alive(connection, address.options)
            return connection
    raise AssertionError  # an address has a host


async def _connect_to(host: Host, address: Address, tls: ssl.SSLContext | None, **options: Any) -> Any:
    first, *others = _ways(host, address, tls)
    for way in (first, *others):
        try:
            return await asyncpg.connect(
                # lists: asyncpg would split a string at commas
                host=[host.name],
                port=[host.port],
                user=address.user,
                password=address.secret,
                passfile=NOWHERE,
                database=address.database,
                ssl=way,
                direct_tls=address.options.get("sslnegotiation") == "direct",
                **options,
            )
        except asyncpg.InvalidPasswordError:
            raise
        except NEXT_WAY:
            if way is (others or [first])[-1]:
                raise
    raise AssertionError  # there is always one


def _ways(host: Host, address: Address, tls: ssl.SSLContext | None) -> list[ssl.SSLContext | bool]:
    """Returns the TLS contexts to try, in order; False is without TLS."""
    if tls is None or host.is_socket:
        return [False]
    ways: dict[str, list[ssl.SSLContext | bool]] = {"allow": [False, tls], "prefer": [tls, False]}
    return ways.get(address.options["sslmode"], [tls])


def _keep_alive(connection: Any, options: dict[str, str]) -> None:
    """Sets the TCP keep-alive options that libpq would set and the system has."""
    if options.get("keepalives") == "0":
        return
    connected = connection._transport.get_extra_info("socket")  # there is no public way to the socket
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, (option, usual) in KEEPALIVES.items():
        if (value := int(options.get(name, usual))) and hasattr(socket, option):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
