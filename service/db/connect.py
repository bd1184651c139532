"""Connects asyncpg as libpq connects: host by host, each with a time of its own, with TLS as sslmode says."""

import random
import socket
import ssl
from typing import Any

import asyncpg

from service.db.address import NOWHERE, Address, Host

CONNECT_SECONDS = 3  # for all hosts together, unless the address has a connect_timeout, which is for each
LEAST_SECONDS = 1  # for each of many hosts

# What lets libpq go on to the next host. A host that answers and refuses the user does not.
NEXT_HOST = (OSError, asyncpg.CannotConnectNowError, asyncpg.InternalClientError, asyncpg.ConnectionDoesNotExistError)
# What lets libpq try the same host once more, with TLS or without, where sslmode is allow or prefer.
NEXT_WAY = (
    ConnectionError,
    ssl.SSLError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.ConnectionDoesNotExistError,
)

# libpq's names of the options, the system's, and what holds when the address says nothing: a connection that died
# silently is found out within half a minute when it is idle, and within the deadline of a request when it is used.
KEEPALIVES = {
    "keepalives_idle": ("TCP_KEEPIDLE", 10),  # seconds
    "keepalives_interval": ("TCP_KEEPINTVL", 5),
    "keepalives_count": ("TCP_KEEPCNT", 3),
    "tcp_user_timeout": ("TCP_USER_TIMEOUT", 3000),  # milliseconds
}


async def connect(address: Address, tls: ssl.SSLContext | None, **options: Any) -> Any:
    """Returns a connection of asyncpg's to the first host that has the wanted target_session_attrs.

    The options are asyncpg's; `tls` is what address.tls() returned. Raises what the last host answered.
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
                # a list each: asyncpg would look for commas in a text
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
    raise AssertionError  # there is a way


def _ways(host: Host, address: Address, tls: ssl.SSLContext | None) -> list[ssl.SSLContext | bool]:
    """Returns with which TLS to try, in order; False is without."""
    if tls is None or host.is_socket:
        return [False]
    ways: dict[str, list[ssl.SSLContext | bool]] = {"allow": [False, tls], "prefer": [tls, False]}
    return ways.get(address.options["sslmode"], [tls])


def _keep_alive(connection: Any, options: dict[str, str]) -> None:
    """Has the system notice a connection that died silently, as libpq does, as far as the system can."""
    if options.get("keepalives") == "0":
        return
    connected = connection._transport.get_extra_info("socket")  # asyncpg offers no other way to it
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, (option, usual) in KEEPALIVES.items():
        if (value := int(options.get(name, usual))) and hasattr(socket, option):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
