"""One address for pool, migrations, psql and the log: whatever libpq takes works in all of them, or is refused."""

import asyncio
import datetime
import os
import pwd
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import quote

import asyncpg
import httpx
import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from psycopg import sql

from service.__main__ import main
from service.db import embedded
from service.db import migrations as schema
from service.db.address import Address, Host, forget_environment, parse_address
from service.db.coalescer import Coalescer, waited
from service.db.connect import connect
from service.db.migrations import migrate
from service.db.pool import Pool
from service.db.psql import NoPsql, best_psql
from service.queries import tasks as queries
from tests.conftest import make_settings, serving, wait_until
from tests.processes import Client, Postgres, external, free_port, own_folder, pgexec, run_service

# What it says ---------------------------------------------------------------------------------------------------------


def hosts(*pairs: tuple[str, int]) -> tuple[Host, ...]:
    return tuple(Host(*pair) for pair in pairs)


HERE = hosts(("/var/run/postgresql", 5432), ("/tmp", 5432))  # noqa: S108
PARSED: list[tuple[str, dict[str, Any]]] = [
    ("postgres://u:p@db.test/tasks", {"hosts": hosts(("db.test", 5432)), "database": "tasks", "user": "u"}),
    ("PostgreSQL+asyncpg://db.test/x?ssl=require", {"options": {"sslmode": "require"}}),
    ("postgresql+psycopg://db.test/x?ssl=true", {"options": {"sslmode": "require"}}),
    ("postgresql://db.test/x?ssl=FALSE", {"options": {"sslmode": "disable"}}),
    ("postgresql://db.test/x?sslmode=disable&ssl=true", {"options": {"sslmode": "disable"}}),
    ("postgresql://u@db.test", {"database": "u", "options": {"sslmode": "prefer"}}),
    ("postgresql:///x?sslmode=verify-full&sslnegotiation=direct", {"options": {"sslmode": "disable"}}),
    ("postgresql://", {"hosts": HERE}),
    ("postgresql:///x", {"hosts": HERE}),
    ("postgresql://:6432/x", {"hosts": hosts(("/var/run/postgresql", 6432), ("/tmp", 6432))}),  # noqa: S108
    ("postgresql://h1,h2/x", {"hosts": hosts(("h1", 5432), ("h2", 5432))}),
    ("postgresql://h1:1,h2:2/x", {"hosts": hosts(("h1", 1), ("h2", 2))}),
    ("postgresql://h1,h2:2/x", {"hosts": hosts(("h1", 5432), ("h2", 2))}),
    ("postgresql:///x?host=h1,h2&port=7", {"hosts": hosts(("h1", 7), ("h2", 7))}),
    ("postgresql://h1,h2/x?port=7", {"hosts": hosts(("h1", 7), ("h2", 7))}),
    ("postgresql://[::1]:1,[2001:db8::2],h/x", {"hosts": hosts(("::1", 1), ("2001:db8::2", 5432), ("h", 5432))}),
    ("postgresql://%2Ftmp%2Fmy%20sock:5599/x", {"hosts": hosts(("/tmp/my sock", 5599))}),  # noqa: S108
    ("postgresql:///x?host=/a%2Fb&port=5", {"hosts": hosts(("/a/b", 5))}),
    ("postgresql://bücher.test/x", {"hosts": hosts(("xn--bcher-kva.test", 5432))}),
    ("postgresql://my_db/my%20tasks%2F%C3%BC", {"hosts": hosts(("my_db", 5432)), "database": "my tasks/ü"}),
    ("postgresql://h/x?user=a%40b&dbname=y", {"user": "a@b", "database": "y"}),
    ("postgresql://h/x?options=-c%20a%3Db,c", {"options": {"sslmode": "prefer", "options": "-c a=b,c"}}),
    ("postgresql://h/x?options=endpoint=ep-x", {"options": {"sslmode": "prefer", "options": "endpoint=ep-x"}}),
    ("postgresql://h/x?sslrootcert=system", {"options": {"sslmode": "verify-full", "sslrootcert": "system"}}),
    ("postgresql://h/x?sslrootcert=&sslmode=&", {"options": {"sslmode": "prefer"}}),
    ("postgresql://h/x?keepalives=5&keepalives=7", {"options": {"sslmode": "prefer", "keepalives": "7"}}),
    (
        "postgresql://h/x?pgbouncer=true&schema=public&connection_limit=5&pool_timeout=0&sslaccept=strict&uselibpqcompat=1"
        "&statement_cache_size=0&pool_mode=transaction&prepareThreshold=0&ApplicationName=x&currentSchema=x&bare",
        {
            "options": {"sslmode": "prefer"},
            "ignored": (
                "pgbouncer", "schema", "connection_limit", "pool_timeout", "sslaccept", "uselibpqcompat",
                "statement_cache_size", "pool_mode", "prepareThreshold", "ApplicationName", "currentSchema", "bare",
            ),
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("url", "expected"), PARSED)
def test_the_parts_of_a_url(url: str, expected: dict[str, Any]) -> None:
    address = make_settings(url).address()
    assert {name: getattr(address, name) for name in expected} == expected


PASSWORDS = ["p@ss:w/o?r#d%&=+ x", "p%40+w", "'\"\\`$(x)", "пароль-ü-🔑", " ", "{}", "a,b;c", "x" * 300]


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_survives_in_both_places_and_never_shows(password: str) -> None:
    encoded = quote(password, safe="")
    for url in (f"postgresql://u:{encoded}@h/x", f"postgresql://h/x?user=u&password={encoded}"):
        settings = make_settings(url)
        address = settings.address()
        assert (address.user, address.secret) == ("u", password)
        for text in (str(address), repr(address), str(settings), repr(settings), settings.model_dump_json()):
            assert len(password) < 3 or password not in text


@pytest.mark.parametrize("text", ["p%40+w", "p#w", "p?w", "p=w&x", "p:w", "pä"])
def test_what_libpq_takes_undecoded_is_taken_as_libpq_takes_it(text: str) -> None:
    assert parse_address(f"postgresql://u:{text}@h/x").secret == text.replace("%40", "@")


REFUSED = [
    ("mysql://u:hidden@db.test/x", "must begin with postgresql://"),
    ("host=db.test password=hidden", "must begin with postgresql://"),
    ("postgresql://u:hid@den@db.test/x", "has an @ or a / that is not encoded"),
    ("postgresql://u:hid/den@db.test/x", "has an @ or a / that is not encoded"),
    ("postgresql://u:1/hidden@db.test/x", "has an @ or a / that is not encoded"),
    ("postgresql://u:1?hid=den/2@db.test/x", "has an @ or a / that is not encoded"),
    ("postgresql://u:x@db.test?password=hid@den", "has an @ or a / that is not encoded"),
    ("postgresql://u:hid%zzden@db.test/x", "has a % that is not encoded"),
    ("postgresql://u:hidden%@db.test/x", "has a % that is not encoded"),
    ("postgresql://u:hidden%00@db.test/x", "has a % that is not encoded"),
    ("postgresql://u:hidden @db.test/x", "has a space or a control character"),
    ("postgresql://u:hidden@db.test/x\n", "has a space or a control character"),
    ("postgresql://u:hidden@[::1/x", "is no URL of a PostgreSQL"),
    ("postgresql://u:hidden@[]/x", "is no URL of a PostgreSQL"),
    ("postgresql://u:hidden%ff@h/x", "is no URL of a PostgreSQL"),
    ("postgresql://u:hidden@db.test:port/x", "has a port that is no number from 1 to 65535"),
    ("postgresql://u:hidden@db.test:0/x", "has a port that is no number from 1 to 65535"),
    ("postgresql://u:hidden@db.test:65536/x", "has a port that is no number from 1 to 65535"),
    ("postgresql://u:hidden@h1,h2,h3/x?port=1,2", "has 3 hosts and 2 ports"),
    ("postgresql://u:hidden@a..b/x", "has a host that is no name"),
    ("postgresql://u:hidden@%40abstract/x", "has a host that is no name"),
    ("postgresql:///x?password=hidden&host=h1:5432", "has a host that is no name"),
    ("postgresql://u:hidden@db.test/x?sslmode=nonsense", "an option sslmode that is none of disable, allow"),
    ("postgresql://u:hidden@db.test/x?sslmode=no-verify", "an option sslmode that is none of disable, allow"),
    ("postgresql://u:hidden@db.test/x?ssl=perhaps", "an option sslmode that is none of disable, allow"),
    ("postgresql://u:hidden@db.test/x?sslMode=require", "has the option sslMode, which may be meant for sslmode"),
    ("postgresql://u:hidden@db.test/x?sslrotcert=system", "which may be meant for sslrootcert"),
    ("postgresql://u:hidden@db.test/x?sslmode", "has the option sslmode without a value"),
    ("postgresql://u:hidden@db.test/x?sslmode=verify-full", "sslmode=verify-full without sslrootcert"),
    ("postgresql://u:hidden@db.test/x?sslmode=require&sslrootcert=system", "needs sslmode=verify-full"),
    ("postgresql://u:hidden@db.test/x?sslmode=prefer&sslnegotiation=direct", "needs sslmode=require or more"),
    ("postgresql://u:hidden@db.test/x?sslcert=/a", "has one of sslcert and sslkey"),
    ("postgresql://u:hidden@db.test/x?sslmode=require&sslrootcert=/not/there", "whose file /not/there cannot be read"),
    ("postgresql://u:hidden@db.test/x?sslmode=require&sslrootcert=/dev/null", "has TLS options that do not work"),
    ("postgresql://u:hidden@db.test/x?connect_timeout=soon", "an option connect_timeout that is no whole number"),
    ("postgresql://u:hidden@db.test/x?target_session_attrs=master", "target_session_attrs that is none of any, read-"),
    ("postgresql://u:hidden@db.test/x?gssencmode=require", "gssencmode that is none of disable, prefer"),
    ("postgresql://u:hidden@db.test/x?client_encoding=latin1", "client_encoding that is none of auto"),
    *(
        (f"postgresql://u:hidden@db.test/x?{name}=hidden", f"has the option {name}, which not all of")
        for name in ("service", "passfile", "hostaddr", "sslpassword", "require_auth", "requirepeer", "krbsrvname",
                     "replication", "scram_client_key", "oauth_client_secret")
    ),
]  # fmt: skip


@pytest.mark.parametrize(("url", "message"), REFUSED)
def test_what_is_wrong_is_said_without_the_secret(
    url: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("BETTER_AUTH_SECRET", "x" * 32)
    monkeypatch.setattr("sys.argv", ["service", "migrate"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main()
    said = str(ended.value) + "".join(capsys.readouterr())
    assert "DATABASE_URL: " in said
    assert message in said
    assert "hid" not in said
    assert "den" not in said.replace("hidden", "")


# Where it leads -------------------------------------------------------------------------------------------------------


class Server(NamedTuple):
    """A PostgreSQL that asks everybody but its superuser for a password, on loopback and in two folders' sockets."""

    port: int
    socket: Path  # its path has a space, a comma's neighbours and a percent sign
    postgres: Postgres

    def admin(self) -> psycopg.Connection[Any]:
        return psycopg.connect(host=str(self.socket), port=self.port, user="postgres", dbname=DATABASE, autocommit=True)


DATABASE = "my tasks/ü?#%@:+&="
USER = "ü ser@x/:?#%+&="
PASSWORD = PASSWORDS[0]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with own_folder() as folder:
        postgres, port = Postgres(folder), free_port()
        with psycopg.connect(postgres.url, autocommit=True) as admin:
            admin.execute(sql.SQL("create database {}").format(sql.Identifier(DATABASE)))
        postgres.stop()
        sockets = folder / "so ck%20+é"
        sockets.mkdir()
        for path in (folder, sockets):
            path.chmod(0o777)
        data = folder / "postgres"
        with (data / "postgresql.conf").open("a") as configuration:
            configuration.write(
                f"listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{sockets}'\n"
            )
        (data / "pg_hba.conf").write_text(
            "local all postgres trust\nlocal all all scram-sha-256\nhost all all all scram-sha-256\n"
        )
        command = ("-w", "-l", str(data / "log"), "-D", str(data), "start")
        pgexec("pg_ctl", command, bin_path=embedded.PSQL.parent, user=postgres._server.system_user, cwd=data)
        server = Server(port, sockets, postgres)
        migrate(
            parse_address(f"postgresql://postgres@{quote(str(sockets), safe='')}:{port}/{quote(DATABASE, safe='')}")
        )
        with server.admin() as admin:
            admin.execute("grant usage on schema tasks to public")
            admin.execute("grant all on all tables in schema tasks to public")
            for name, password in {USER: PASSWORD, **{f"user {n}": text for n, text in enumerate(PASSWORDS)}}.items():
                role = sql.SQL("create role {} login password {}").format(sql.Identifier(name), sql.Literal(password))
                admin.execute(role)
        yield server


WHO = "select concat_ws(' ', current_user, current_database(), current_setting('application_name'))"


def psql(address: Address, statement: str) -> str:
    """Returns what psql prints; fails when it cannot connect."""
    command = [str(best_psql(address, embedded.PSQL).path), "-X", "-w", "-At", "-c", statement]
    variables = {**os.environ, "LC_ALL": "C.UTF-8", **address.for_psql()}
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


async def with_pool(address: Address, statement: str) -> Any:
    connection = await connect(address, address.tls())
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def everybody(address: Address, statement: str) -> list[str]:
    """Returns what pool, migrations and psql find; each connects as it does in the service."""
    with schema.connect(address) as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    assert migrate(address) == []
    return [str(await with_pool(address, statement)), str(row[0]), psql(address, statement)]


def forms(server: Server) -> list[str]:
    """Returns the ways to write the server's address."""
    user, password, database = (quote(text, safe="") for text in (USER, PASSWORD, DATABASE))
    folder, port = quote(str(server.socket), safe=""), server.port
    name, of_query = f"{user}:{password}", f"user={user}&password={password}"
    return [
        f"postgresql://{name}@127.0.0.1:{port}/{database}",
        f"postgres://{name}@localhost:{port}/{database}?ssl=prefer",
        f"postgresql+asyncpg://{name}@127.0.0.1:{port}/{database}?ssl=false",
        f"postgresql://{name}@{folder}:{port}/{database}",
        f"postgresql://{name}@/{database}?host={folder}&port={port}",
        f"postgresql://{name}@{folder}:{port}/{database}?sslmode=require",  # which means nothing for a socket
        f"postgresql://127.0.0.1:{port}/{database}?{of_query}",
        f"postgresql://?host=127.0.0.1&port={port}&dbname={database}&{of_query}",
        f"postgresql://{name}@127.0.0.1:1,127.0.0.1:{port}/{database}?target_session_attrs=read-write",
        f"postgresql://{name}@127.0.0.1,{folder}/{database}?port={port}&load_balance_hosts=random",
        f"postgresql://{name}@127.0.0.1:{port}/{database}?pgbouncer=true&schema=public&connection_limit=3",
        f"postgresql://{name}@127.0.0.1:{port}/{database}?sslmode=allow&channel_binding=prefer&gssencmode=prefer"
        "&connect_timeout=5&keepalives=1&keepalives_idle=60&keepalives_interval=5&keepalives_count=3&tcp_user_timeout=9000",
    ]


@pytest.mark.parametrize("number", range(12))
async def test_every_form_leads_all_three_to_the_same_place(server: Server, number: int) -> None:
    address = parse_address(forms(server)[number])
    who = "select concat_ws(' ', current_user, current_database())"
    assert await everybody(address, who) == [f"{USER} {DATABASE}"] * 3


@pytest.mark.parametrize("number", range(len(PASSWORDS)))
async def test_every_password_opens_all_three(server: Server, number: int) -> None:
    password, database = quote(PASSWORDS[number], safe=""), quote(DATABASE, safe="")
    address = parse_address(f"postgresql://user%20{number}:{password}@127.0.0.1:{server.port}/{database}")
    assert await everybody(address, "select current_user") == [f"user {number}"] * 3


async def test_options_and_the_application_s_name_reach_the_server(server: Server) -> None:
    url = forms(server)[0] + "?options=-c%20search_path%3Dpublic,x%20-c%20work_mem=5MB&application_name=a%20%2B+b"
    settings = "select concat_ws(' ', current_setting('search_path'), current_setting('work_mem'))"
    address = parse_address(url)
    pool = Pool(address, 1, 1, 100)
    await pool.open()
    name = "select concat_ws(' ', current_setting('application_name'), current_setting('timezone'), $1::text)"
    (row,) = await pool.run(f"{name}, ({settings})", [["x"]])
    await pool.close()
    assert tuple(row) == ("a ++b UTC x", "public,x 5MB")
    with schema.connect(address) as connection:
        assert connection.execute(settings.encode()).fetchone() == ("public,x 5MB",)
    assert psql(address, f"{settings} || current_setting('application_name')") == "public,x 5MBa ++b"


async def test_without_a_statement_cache_it_works_too(server: Server) -> None:
    db = Coalescer(Pool(parse_address(forms(server)[0]), 1, 2, statement_cache=0))
    await db.open()
    token = waited.set([])
    for _ in range(3):
        assert (await queries.list_tasks(db, "anybody")).tasks == b"[]"
    waited.reset(token)
    await db.close()


def test_the_service_itself_serves_migrates_and_opens_psql(server: Server, tmp_path: Path) -> None:
    for form in (forms(server)[3], forms(server)[6] + "&pgbouncer=true&schema=public"):
        settings = external(form)
        with serving(tmp_path, **settings) as service:
            assert Client(service).create("x").status_code == 201
            assert httpx.get(service.address + "/readyz").status_code == 200
            log = service.log.read_text()
        for command in (["migrate"], ["psql", "-At", "-c", "select 'x'"]):
            ended = run_service(tmp_path, *command, **settings)
            assert ended.returncode == 0, ended.stderr
            log += ended.stderr
        assert log.count("options of other tools, which are ignored: pgbouncer, schema") == (3 if "pgb" in form else 0)
        assert PASSWORD not in log


# Which host -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def read_only() -> Iterator[Postgres]:
    with own_folder() as folder:
        postgres = Postgres(folder)
        with psycopg.connect(postgres.url, autocommit=True) as admin:
            admin.execute("alter system set default_transaction_read_only = on")
            admin.execute("select pg_reload_conf()")
        yield postgres


@pytest.mark.parametrize(
    ("wanted", "order", "found"),
    [
        ("any", "rw", "r"),
        ("any", "wr", "w"),
        ("read-write", "rw", "w"),
        ("read-write", "wr", "w"),
        ("read-only", "wr", "r"),
        ("primary", "rw", "r"),
        ("standby", "rw", None),
        ("prefer-standby", "wr", "w"),
        ("read-write", "r", None),
        ("read-only", "w", None),
    ],
)
async def test_the_first_host_that_is_as_wanted(
    read_only: Postgres, database_url: str, wanted: str, order: str, found: str | None
) -> None:
    urls = {"r": read_only.url, "w": database_url}
    hosts = {letter: parse_address(url).hosts[0] for letter, url in urls.items()}
    names = ",".join(quote(hosts[letter].name) for letter in order)
    ports = ",".join(str(hosts[letter].port) for letter in order)
    query = f"host={names}&port={ports}&target_session_attrs={wanted}"
    address = parse_address(f"postgresql://postgres@/postgres?{query}")
    which = "select current_setting('default_transaction_read_only')"
    if found is None:
        with pytest.raises(asyncpg.InternalClientError, match="target attribute"):
            await with_pool(address, which)
        with pytest.raises(psycopg.OperationalError):
            schema.connect(address)
    else:
        answers = {"r": "on", "w": "off"}
        assert await with_pool(address, which) == answers[found]
        assert psql(address, which) == answers[found]
        with schema.connect(address) as connection:
            assert connection.execute(which.encode()).fetchone() == (answers[found],)


async def test_a_host_that_is_silent_or_away_keeps_nobody_from_the_next(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, and nobody answers
        name = f"{quote(USER, safe='')}:{quote(PASSWORD, safe='')}"
        hosts = f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:1,127.0.0.1:{server.port}"
        address = parse_address(f"postgresql://{name}@{hosts}/{quote(DATABASE, safe='')}")
        assert await with_pool(address, "select 1") == 1
        slow = parse_address(f"postgresql://{name}@{hosts}/{quote(DATABASE, safe='')}?connect_timeout=2")
        assert await with_pool(slow, "select 1") == 1
        with schema.connect(slow) as connection:
            assert connection.execute("select 1").fetchone() == (1,)


async def test_a_wrong_password_is_not_tried_at_the_next_host(server: Server) -> None:
    address = parse_address(
        f"postgresql://user%200:wrong@127.0.0.1:{server.port},127.0.0.1:1/{quote(DATABASE, safe='')}"
    )
    with pytest.raises(asyncpg.InvalidPasswordError):
        await with_pool(address, "select 1")


# TLS ------------------------------------------------------------------------------------------------------------------


class Certificates(NamedTuple):
    """The files of an authority, and of a server and a client that it vouches for, and another authority's."""

    authority: Path
    other: Path
    server: Path
    client: Path
    client_key: Path


def certificate(
    folder: Path, name: str, issuer: tuple[x509.Name, Any] | None = None
) -> tuple[Path, tuple[x509.Name, Any]]:
    """Writes a key and its certificate into a file; returns the path, and what signs others."""
    key, subject = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]),
    )
    now = datetime.datetime.now(datetime.UTC)
    signer, signing_key = issuer or (subject, key)
    built = (
        x509.CertificateBuilder(
            signer, subject, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(1)
        )
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(signing_key, SHA256())
    )
    path = folder / f"{name}.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(built.public_bytes(Encoding.PEM) + private)
    path.chmod(0o600)
    return path, (subject, key)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    authority, signer = certificate(folder, "authority")
    other, _ = certificate(folder, "other")
    server, _ = certificate(folder, "localhost", signer)
    client, _ = certificate(folder, "client", signer)
    return Certificates(authority, other, server, client, client)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


SSL_REQUEST = bytes.fromhex("0000000804d2162f")
UNENCRYPTED = b"SFATAL\0C28000\0Mno entry in pg_hba.conf, no encryption\0\0"  # as PostgreSQL says it


@contextmanager
def encrypted(port: int, context: ssl.SSLContext, direct: bool = False) -> Iterator[int]:
    """Stands in front of a PostgreSQL, speaks TLS and nothing else; yields the port."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not direct:
                if await reader.readexactly(8) != SSL_REQUEST:
                    writer.write(b"E" + (len(UNENCRYPTED) + 4).to_bytes(4) + UNENCRYPTED)
                    return
                writer.write(b"S")
                await writer.start_tls(context)
            behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(copy(reader, behind_writer), copy(behind_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(
            relay, "localhost", 0, family=socket.AF_INET, ssl=context if direct else None
        )
        ended = asyncio.Event()
        started.append((server.sockets[0].getsockname()[1], asyncio.get_running_loop(), ended))
        await ended.wait()
        server.close()

    started: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = []
    thread = Thread(target=lambda: asyncio.run(run()))  # which ends what is under way
    thread.start()
    wait_until(lambda: started)
    port_here, loop, ended = started[0]
    try:
        yield port_here
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()


TLS: list[tuple[str, str, bool]] = [
    ("localhost", "", True),
    ("localhost", "sslmode=disable", False),
    ("localhost", "sslmode=allow", True),
    ("localhost", "sslmode=require", True),
    ("localhost", "ssl=true", True),
    ("localhost", "sslmode=require&sslrootcert={authority}", True),
    ("localhost", "sslmode=require&sslrootcert={other}", False),
    ("127.0.0.1", "sslmode=verify-ca&sslrootcert={authority}", True),
    ("localhost", "sslmode=verify-ca&sslrootcert={other}", False),
    ("localhost", "sslmode=verify-full&sslrootcert={authority}", True),
    ("127.0.0.1", "sslmode=verify-full&sslrootcert={authority}", False),
    ("localhost", "sslrootcert=system", False),
    ("localhost", "sslmode=require&ssl_min_protocol_version=TLSv1.3", True),
    ("localhost", "sslmode=require&ssl_max_protocol_version=TLSv1.2", False),  # the server wants 1.3
]


@pytest.mark.parametrize(("host", "options", "works"), TLS)
async def test_sslmode_means_the_same_to_pool_and_migrations(
    server: Server, certificates: Certificates, host: str, options: str, works: bool
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with encrypted(server.port, context) as port:
        await both(address_of(host, port, options, certificates), works)


def address_of(host: str, port: int, options: str, certificates: Certificates) -> Address:
    files = {name: quote(str(path), safe="") for name, path in certificates._asdict().items()}
    name = f"{quote(USER, safe='')}:{quote(PASSWORD, safe='')}"
    return parse_address(f"postgresql://{name}@{host}:{port}/{quote(DATABASE, safe='')}?{options.format(**files)}")


async def both(address: Address, works: bool) -> None:
    """Sees that pool and migrations can connect, or that neither can."""
    if works:
        assert await with_pool(address, "select 1") == 1
        with await asyncio.to_thread(schema.connect, address) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
    else:
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.ConnectionDoesNotExistError)):
            await with_pool(address, "select 1")
        with pytest.raises(psycopg.OperationalError):
            await asyncio.to_thread(schema.connect, address)


async def test_the_machine_s_own_roots(
    server: Server, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))  # which is how OpenSSL is told of them
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server)
    with encrypted(server.port, context) as port:
        await both(address_of("localhost", port, "sslrootcert=system", certificates), True)
        await both(address_of("127.0.0.1", port, "sslrootcert=system", certificates), False)


async def test_a_client_s_certificate(server: Server, certificates: Certificates) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server)
    context.load_verify_locations(certificates.authority)
    context.verify_mode = ssl.CERT_REQUIRED
    with encrypted(server.port, context) as port:
        await both(
            address_of("localhost", port, "sslmode=require&sslcert={client}&sslkey={client_key}", certificates), True
        )
        await both(address_of("localhost", port, "sslmode=require", certificates), False)
        certificates.client_key.chmod(0o644 if os.geteuid() else 0o646)
        with pytest.raises(ValueError, match="others can read"):
            address_of("localhost", port, "sslmode=require&sslcert={client}&sslkey={client_key}", certificates)
        certificates.client_key.chmod(0o600)


async def test_tls_from_the_first_byte(server: Server, certificates: Certificates) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server)
    context.set_alpn_protocols(["postgresql"])
    with encrypted(server.port, context, direct=True) as port:
        options = "sslmode=verify-full&sslrootcert={authority}&sslnegotiation=direct"
        await both(address_of("localhost", port, options, certificates), True)
        await both(address_of("localhost", port, options.replace("direct", "postgres"), certificates), False)


def test_channel_binding_that_the_pool_cannot_keep_is_named(server: Server, tmp_path: Path) -> None:
    with serving(tmp_path, **external(forms(server)[0] + "?channel_binding=require")) as service:
        assert "channel_binding=require holds for migrate and psql" in service.log.read_text()
        assert httpx.get(service.address + "/readyz").status_code == 200


# What the environment says of it --------------------------------------------------------------------------------------


def hostile(home: Path) -> dict[str, str]:
    """Returns an environment that says everything else, and a home that does as well."""
    (home / ".postgresql").mkdir()
    for name in ("postgresql.crt", "postgresql.key", "root.crt", "root.crl"):
        (home / ".postgresql" / name).write_text("nonsense")
        (home / ".postgresql" / name).chmod(0o600)
    (home / ".pgpass").write_text("*:*:*:*:wrong\n")
    (home / ".pgpass").chmod(0o600)
    (home / ".pg_service.conf").write_text("[other]\nhost=/nowhere\ndbname=other\nuser=other\n")
    return {
        "PGHOST": "/nowhere", "PGHOSTADDR": "192.0.2.1", "PGPORT": "1", "PGUSER": "other", "PGDATABASE": "other",
        "PGPASSWORD": "wrong", "PGPASSFILE": str(home / ".pgpass"), "PGSERVICE": "other", "PGOPTIONS": "-c nonsense=1",
        "PGSERVICEFILE": str(home / ".pg_service.conf"), "PGSYSCONFDIR": str(home), "PGAPPNAME": "other",
        "PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/nowhere", "PGSSLCERT": "/nowhere", "PGSSLNEGOTIATION": "direct",
        "PGREQUIRESSL": "1", "PGREQUIREAUTH": "none", "PGREQUIREPEER": "nobody", "PGCHANNELBINDING": "require",
        "PGGSSENCMODE": "require", "PGTARGETSESSIONATTRS": "standby", "PGCONNECT_TIMEOUT": "x", "PGTZ": "Nowhere/X",
        "PGDATESTYLE": "nonsense", "PGCLIENTENCODING": "nonsense", "PGGSSLIB": "nonsense", "PGCLUSTER": "99/none",
        "PGLOADBALANCEHOSTS": "nonsense", "PGMINPROTOCOLVERSION": "9.9", "PGSSLMINPROTOCOLVERSION": "nonsense",
        "PGKRBSRVNAME": "x", "PGGEQO": "nonsense", "HOME": str(home), "LOGNAME": "other", "USER": "other",
    }  # fmt: skip


@pytest.mark.parametrize("form", [0, 3])
def test_nothing_in_the_environment_overrules_the_url(server: Server, tmp_path: Path, form: int) -> None:
    settings = external(forms(server)[form]) | hostile(tmp_path)
    with serving(tmp_path, **settings) as service:
        assert Client(service).create("x").status_code == 201
    assert run_service(tmp_path, "migrate", **settings).stdout == "nothing to apply: the schema is current\n"
    psql = run_service(tmp_path, "psql", "-At", "-c", "select current_database(), current_user", **settings)
    assert (psql.returncode, psql.stdout) == (0, f"{DATABASE}|{USER}\n"), psql.stderr


def test_nothing_in_the_environment_overrules_the_embedded_database(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with own_folder() as folder:
        settings = hostile(home)
        with serving(folder, **settings) as service:
            assert httpx.get(service.address + "/readyz").status_code == 200
            psql = run_service(folder, "psql", "-At", "-c", "select count(*) from tasks.task", **settings)
            assert (psql.returncode, psql.stdout) == (0, "0\n"), psql.stderr


def test_a_user_that_the_url_does_not_name_is_the_operating_system_s(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "PGUSER"):
        monkeypatch.setenv(name, "other")
    forget_environment()
    own = pwd.getpwuid(os.geteuid()).pw_name
    address = parse_address("postgresql://h")
    assert (address.user, address.database) == (own, own)
    monkeypatch.setattr("os.geteuid", lambda: 4_000_000_000)
    with pytest.raises(ValueError, match="names no user"):
        parse_address("postgresql://h")


def test_a_process_whose_user_has_no_name_can_migrate(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)
    with server.admin() as admin:
        admin.execute("create database nameless")
    address = parse_address(f"postgresql://postgres@{quote(str(server.socket), safe='')}:{server.port}/nameless")
    assert migrate(address) != []


def test_what_a_server_that_refuses_is_called(server: Server, tmp_path: Path) -> None:
    where = f"127.0.0.1:{server.port}/{DATABASE}"
    url = forms(server)[0]
    wrong = url.replace(quote(PASSWORD, safe=""), "wrong%3Aone")
    ended = run_service(tmp_path, "migrate", **external(wrong))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"The database {where} refuses: " in ended.stderr
    assert "password authentication failed" in ended.stderr
    without = run_service(tmp_path, "migrate", **external(url.replace(f":{quote(PASSWORD, safe='')}@", "@")))
    assert "DATABASE_URL has no password; PGPASSWORD and ~/.pgpass are not read" in without.stderr
    with serving(tmp_path, **external(wrong)) as service:
        log = service.log.read_text()
        assert f"the database is away, trying again every second: {where}: " in log
    for said in (ended.stderr, without.stderr, log):
        assert "Traceback" not in said
        assert "wrong:one" not in said
        assert PASSWORD not in said


# Which psql -----------------------------------------------------------------------------------------------------------

NEEDS_NONE = "postgresql:///x?host=/tmp"
MAY = "postgresql://h/x"
MUST = "postgresql://h/x?sslmode=require"
ROOTS = "postgresql://h/x?sslrootcert=system"


def fake_psql(folder: Path, version: str, has_tls: bool) -> Path:
    """Makes a psql that says of itself what the real ones say."""
    complaint = "connection to server on socket failed" if has_tls else (
        'psql: error: sslmode value "require" invalid when SSL support is not compiled in'
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "psql"
    path.write_text(
        f"""#!/bin/sh
if [ "$1" = --version ]; then echo "psql (PostgreSQL) {version}"; exit; fi
echo '{complaint}' >&2
exit 2
"""
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("url", "on_path", "chosen"),
    [
        (NEEDS_NONE, ["15.18 tls"], "own"),
        (NEEDS_NONE, ["19beta1 tls"], "19beta1 tls"),
        (NEEDS_NONE, [], "own"),
        (MAY, ["15.18 tls"], "15.18 tls"),
        (MAY, ["15.18 tls", "17.2 (Debian 17.2-1) tls"], "17.2 (Debian 17.2-1) tls"),
        (MAY, ["20.1"], "20.1"),
        (MAY, [], "own"),
        (MUST, ["15.18 tls", "20.1"], "15.18 tls"),
        (MUST, ["20.1"], "NoPsql: a psql with TLS and there is none on the PATH: install"),
        (ROOTS, ["16.1 tls", "15.2 tls"], "16.1 tls"),
        (ROOTS, ["15.2 tls"], "NoPsql: a psql with TLS, and PostgreSQL 16 or newer,"),
    ],
)
def test_the_best_psql_that_can_do_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, on_path: list[str], chosen: str
) -> None:
    own = fake_psql(tmp_path / "own", "18.1", has_tls=False)
    programs = {"own": own}
    for number, text in enumerate(on_path):
        version, has_tls = text.removesuffix(" tls"), text.endswith(" tls")
        programs[text] = fake_psql(tmp_path / str(number), version, has_tls)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "psql").write_text("no program")
    (tmp_path / "broken" / "psql").chmod(0o755)
    folders = [tmp_path / "broken", tmp_path / "none", *(path.parent for path in programs.values() if path != own)]
    monkeypatch.setattr("service.db.psql.os.get_exec_path", lambda: [str(folder) for folder in folders])
    if chosen.startswith("NoPsql"):
        with pytest.raises(NoPsql) as refused:
            best_psql(parse_address(url), own)
        assert chosen.removeprefix("NoPsql: ") in str(refused.value)
        assert "apt install postgresql-client" in str(refused.value)
    else:
        assert best_psql(parse_address(url), own).path == programs[chosen]


def test_the_real_own_psql_is_known_for_what_it_is() -> None:
    found = best_psql(parse_address(NEEDS_NONE), embedded.PSQL)
    assert found.version >= (18, 0)


def test_a_psql_without_tls_says_so_when_it_fails(tmp_path: Path) -> None:
    fake_psql(tmp_path / "bin", "30.1", has_tls=False)
    settings = external("postgresql://127.0.0.1:1/x") | {"PATH": str(tmp_path / "bin")}
    ended = run_service(tmp_path, "psql", "-c", "select 1", **settings)
    assert ended.returncode == 2
    assert "has no TLS. If that is what the server misses, install" in ended.stderr


# Private parts of libraries -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sent", "seconds", "milliseconds"), [("", 10, 3000), ("?keepalives_idle=60", 60, 3000)])
async def test_a_connection_that_dies_silently_is_found_out(
    server: Server, sent: str, seconds: int, milliseconds: int
) -> None:
    """Uses asyncpg's Connection._transport, as service/db/connect.py does: there is no public way to the socket."""
    address = parse_address(forms(server)[0] + sent)
    connection = await connect(address, address.tls())
    found = connection._transport.get_extra_info("socket")
    assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == seconds
    assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == milliseconds
    await connection.close()


def test_yoyo_has_the_private_members_that_migrations_use(server: Server) -> None:
    """service/db/migrations.py overrides the one, and asks the other."""
    with schema.backend(parse_address(forms(server)[0])) as database:
        parent: Any = type(database).__mro__[1]
        assert callable(parent._check_transactional_ddl)
        assert database._in_transaction is False
        with database.transaction():
            assert database._in_transaction is True
