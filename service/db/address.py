"""The database's address: DATABASE_URL, parsed once by libpq's own parser.

Nothing else reads the URL. Everything that libpq and asyncpg would look up by themselves (`PG…` variables, files in the
home directory, a service file) is set here, so that the environment cannot change where or how a connection is made.
"""

import difflib
import os
import pwd
import re
import ssl
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from stat import S_IRWXG, S_IRWXO, S_IWGRP, S_IXGRP
from typing import NamedTuple
from urllib.parse import unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo
from pydantic import SecretStr

EXAMPLE = "postgresql://user:password@host:5432/database"
SCHEME = re.compile(r"postgres(?:ql)?(?:\+(?:asyncpg|psycopg|psycopg2))?://", re.IGNORECASE)
DEFAULT_PORT = 5432
SOCKETS = ("/var/run/postgresql", "/tmp")  # noqa: S108  (where Debian's libpq and PostgreSQL's own look)
NOWHERE = "/dev/null/none"  # a file that cannot exist, in place of the ones libpq looks for in the home directory

# libpq's options and their environment variables: https://www.postgresql.org/docs/current/libpq-connect.html
VARIABLES = {option.keyword.decode(): (option.envvar or b"").decode() for option in Conninfo.get_defaults()}
# That list is this libpq's. The pattern also covers a newer psql, the server and asyncpg.
VARIABLE = re.compile(r"PG[A-Z]+")

SSL_VALUES = {"true": "require", "1": "require", "false": "disable", "0": "disable"}  # of SQLAlchemy's and JDBC's `ssl`
TLS_VERSIONS = {
    "TLSv1": ssl.TLSVersion.TLSv1,
    "TLSv1.1": ssl.TLSVersion.TLSv1_1,
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
    "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}
# Options with a fixed set of values; where libpq accepts more, only those that asyncpg supports too
CHOICES: dict[str, tuple[str, ...]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "sslsni": ("1",),
    "sslcompression": ("0", "1"),  # libpq itself ignores it
    "sslcertmode": ("allow",),
    "ssl_min_protocol_version": tuple(TLS_VERSIONS),
    "ssl_max_protocol_version": tuple(TLS_VERSIONS),
    "channel_binding": ("disable", "prefer", "require"),
    "gssencmode": ("disable", "prefer"),
    "min_protocol_version": ("3.0",),
    "max_protocol_version": ("3.0", "3.2", "latest"),
    "client_encoding": ("auto", "utf8", "UTF8", "utf-8", "UTF-8", "unicode", "UNICODE"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "load_balance_hosts": ("disable", "random"),
}
NUMBERS = {
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
}
FILES = {"sslrootcert", "sslcert", "sslkey", "sslcrl", "sslcrldir"}
TEXTS = {"application_name", "fallback_application_name", "options"}
TLS_OPTIONS = [name for name in VARIABLES if name.startswith("ssl")]
PARTS = {"host", "port", "dbname", "user", "password"}


class Host(NamedTuple):
    """A host, or the folder of a Unix socket, and the port."""

    name: str
    port: int

    @property
    def is_socket(self) -> bool:
        """Whether it is a Unix socket."""
        return self.name.startswith("/")

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


@dataclass(frozen=True)
class Address:
    """Where the database is and how to connect. Its `str()` has hosts, ports and database, and no secret."""

    hosts: tuple[Host, ...]
    database: str
    user: str
    password: SecretStr | None
    options: dict[str, str]  # libpq's other options, checked; sslmode is always set
    ignored: tuple[str, ...] = ()  # names of options in the URL that libpq does not know

    def __str__(self) -> str:
        return f"{','.join(map(str, self.hosts))}/{self.database}"

    @property
    def may_need_tls(self) -> bool:
        """Whether TLS may be used."""
        return self.options["sslmode"] != "disable"

    @property
    def needs_tls(self) -> bool:
        """Whether TLS is required over a network."""
        return self.may_need_tls and self.options["sslmode"] not in ("allow", "prefer")

    @property
    def secret(self) -> str | None:
        """The password, None when there is none."""
        return self.password.get_secret_value() if self.password else None

    def for_libpq(self) -> dict[str, str]:
        """Returns all options for libpq, the password included."""
        # no Kerberos: asyncpg lacks it, and a ticket in the environment would enable it
        fixed = {"gssencmode": "disable", "passfile": NOWHERE}
        files = dict.fromkeys(FILES - {"sslcrldir"}, NOWHERE)
        if "sslcrldir" in self.options:
            del files["sslcrl"]  # OpenSSL loads both or neither
        parts = {
            "host": ",".join(host.name for host in self.hosts),
            "port": ",".join(str(host.port) for host in self.hosts),
            "dbname": self.database,
            "user": self.user,
        }
        if self.secret is not None:
            parts["password"] = self.secret
        return files | self.options | fixed | parts

    def for_psql(self) -> dict[str, str]:
        """Returns the same as environment variables: unlike a command line, other users cannot read them.

        The few options without a variable, all about detecting dead connections, are left out.
        """
        return {VARIABLES[name]: value for name, value in self.for_libpq().items() if VARIABLES.get(name)}

    def in_schema(self) -> "Address":
        """Returns the same address with the service's schema first in the search path."""
        options = f"""{self.options.get("options", "")} -c search_path=tasks,"$user",public""".strip()
        return replace(self, options=self.options | {"options": options})

    def tls(self) -> ssl.SSLContext | None:
        """Returns the TLS context that sslmode and its files mean to libpq; None without TLS.

        Raises OSError (ssl.SSLError is one) when a file cannot be used.
        """
        mode, root = self.options["sslmode"], self.options.get("sslrootcert")
        if not self.may_need_tls:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = mode == "verify-full"
        if root is None:
            context.verify_mode = ssl.CERT_NONE
        elif root == "system":
            context.load_default_certs()
        else:
            context.load_verify_locations(root)
        crl, folder = self.options.get("sslcrl"), self.options.get("sslcrldir")
        if root is not None and (crl or folder):
            context.load_verify_locations(crl, folder)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
        if "sslcert" in self.options:
            # otherwise OpenSSL asks for a passphrase on the terminal
            context.load_cert_chain(self.options["sslcert"], self.options["sslkey"], password=lambda: "")
        context.minimum_version = TLS_VERSIONS[self.options.get("ssl_min_protocol_version", "TLSv1.2")]  # libpq's
        if "ssl_max_protocol_version" in self.options:
            context.maximum_version = TLS_VERSIONS[self.options["ssl_max_protocol_version"]]
        context.set_alpn_protocols(["postgresql"])  # required by PostgreSQL 17 with sslnegotiation=direct
        return context


def forget_environment() -> None:
    """Removes from this process's environment what libpq, asyncpg, psql and PostgreSQL would read."""
    for name in [name for name in os.environ if name in VARIABLES.values() or VARIABLE.fullmatch(name)]:
        del os.environ[name]


def parse_address(url: str) -> Address:
    """Returns the parsed URL. Raises ValueError, which says what is wrong without quoting a possible secret."""
    found, ignored = _split(url)
    options = {name: value for name, value in found.items() if name not in PARTS}
    if unknown := sorted(options.keys() - CHOICES.keys() - NUMBERS - FILES - TEXTS):
        raise ValueError(f"has the option {unknown[0]}, which not all of pool, migrations and psql know: leave it out")
    for name, value in options.items():
        if name in CHOICES and value not in CHOICES[name]:
            raise ValueError(f"has an option {name} that is none of {', '.join(CHOICES[name])}")
        if name in NUMBERS and not re.fullmatch(r"\d{1,9}", value, re.ASCII):
            raise ValueError(f"has an option {name} that is no whole number")
    hosts = _hosts(found.get("host", ""), found.get("port", ""))
    if all(
        host.is_socket for host in hosts
    ):  # libpq never encrypts there, and one built without TLS would reject sslmode
        options = {name: value for name, value in options.items() if name not in TLS_OPTIONS} | {"sslmode": "disable"}
    options.setdefault("sslmode", "verify-full" if options.get("sslrootcert") == "system" else "prefer")
    _check_tls_options(options)
    user = found.get("user") or _own_name()
    password = SecretStr(found["password"]) if "password" in found else None
    address = Address(hosts, found.get("dbname", user), user, password, options, ignored)
    try:
        address.tls()
    except (OSError, ValueError) as error:
        raise ValueError(f"has TLS options that do not work: {error}") from None
    return address


def _split(url: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Returns the URL's non-empty parts, decoded by libpq, and the names of options that libpq does not know."""
    scheme = SCHEME.match(url)
    if scheme is None:
        raise ValueError("must begin with postgresql://, postgres:// or postgresql+asyncpg://")
    rest = url[scheme.end() :]
    if re.search(r"[\0- \x7f]", rest):
        raise ValueError("has a space or a control character; in a URL a space is %20")
    if re.search(r"%(?![0-9A-Fa-f]{2})|%00", rest):
        raise ValueError("has a % that is not encoded; in a URL's password it is %25")
    if rest.count("@") > 1 or "@" in rest.partition("/")[2]:
        # libpq would take the rest of the password for a host, and messages would show it
        raise ValueError(
            "has an @ or a / that is not encoded; in a user, a password and an option they are %40 and %2F"
        )
    credentials, at, place = rest.rpartition("@")
    place, _, query = place.partition("?")
    known, ignored = _options(query)
    try:
        found = conninfo_to_dict(f"postgresql://{credentials}{at}{place}?{'&'.join(known)}")
    except (psycopg.ProgrammingError, UnicodeError):  # the message quotes the URL
        raise ValueError(f"is no URL of a PostgreSQL, such as {EXAMPLE}") from None
    return {name: str(value) for name, value in found.items() if value != ""}, ignored


def _options(query: str) -> tuple[list[str], tuple[str, ...]]:
    """Returns the query's options that libpq knows, encoded for it, and the names of the others."""
    known: list[str] = []
    ignored: list[str] = []
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    for encoded, equals, value in pairs:
        name = unquote(encoded)
        if name == "ssl":
            mode = SSL_VALUES.get(value.lower(), value.lower())
            known.insert(0, f"sslmode={mode}")  # first, so that an explicit sslmode overrides it
        elif name in VARIABLES:
            if not equals:
                raise ValueError(f"has the option {name} without a value")
            known.append(f"{name}={value.replace('=', '%3D')}")
        elif alike := difflib.get_close_matches(name.lower(), TLS_OPTIONS, 1, 0.85):
            raise ValueError(f"has the option {name}, which may be meant for {alike[0]}")  # a typo must not disable TLS
        else:
            ignored.append(name)
    return known, tuple(dict.fromkeys(ignored))


def _hosts(names: str, ports: str) -> tuple[Host, ...]:
    """Returns the hosts with their ports. One port holds for all hosts; empty parts get libpq's defaults."""
    all_names, all_ports = names.split(","), ports.split(",")
    if len(all_ports) == 1:
        all_ports *= len(all_names)
    if len(all_ports) != len(all_names):
        raise ValueError(f"has {len(all_names)} hosts and {len(all_ports)} ports")
    found: list[Host] = []
    for name, port in zip(all_names, all_ports, strict=True):
        if port and not (re.fullmatch(r"\d{1,5}", port, re.ASCII) and 1 <= int(port) <= 65535):
            raise ValueError("has a port that is no number from 1 to 65535")
        found += [Host(each, int(port or DEFAULT_PORT)) for each in ([_host(name)] if name else SOCKETS)]
    return tuple(found)


def _host(name: str) -> str:
    if name.startswith("/"):
        return name
    try:
        if ":" in name:
            ip_address(name)
            return name
        if re.search(r"[@/\s]", name):
            raise ValueError
        return name.encode("idna").decode()
    except ValueError:  # UnicodeError is one
        raise ValueError("has a host that is no name, no address, and no folder of a socket") from None


def _own_name() -> str:
    """Returns the process's user name as the operating system has it, which libpq uses and no variable changes."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise ValueError("names no user, and the operating system has no name for this process's user") from None


def _check_tls_options(options: dict[str, str]) -> None:
    """Raises ValueError for combinations that libpq rejects, or completes with files in the home directory."""
    mode, root = options["sslmode"], options.get("sslrootcert")
    if mode.startswith("verify-") and root is None:
        raise ValueError(f"has sslmode={mode} without sslrootcert: name a file, or system for the machine's own roots")
    if root == "system" and mode != "verify-full":
        raise ValueError("has sslrootcert=system, which needs sslmode=verify-full")
    if options.get("sslnegotiation") == "direct" and mode in ("disable", "allow", "prefer"):
        raise ValueError("has sslnegotiation=direct, which needs sslmode=require or more")
    if ("sslcert" in options) != ("sslkey" in options):
        raise ValueError("has one of sslcert and sslkey, and needs both or none")
    for name in FILES & options.keys():
        if options[name] != "system" and not os.access(options[name], os.R_OK):
            raise ValueError(f"has the option {name}, whose file {options[name]} cannot be read")
    if "sslkey" in options:
        key = Path(options["sslkey"]).stat()
        others = S_IWGRP | S_IXGRP | S_IRWXO if key.st_uid == 0 else S_IRWXG | S_IRWXO  # libpq's rule
        if key.st_mode & others:
            raise ValueError(f"has the option sslkey, whose file {options['sslkey']} others can read: chmod 600 it")
