"""The query module: each statement of `sql/` has one function here, and no other code runs SQL.

JSON comes back as the bytes that PostgreSQL made. Every function raises db.pool.Unavailable when the database does not
answer in time; a write that raises it may or may not have happened.
"""

from pathlib import Path

from service.db.coalescer import Statement

FOLDER = Path(__file__).parents[2] / "sql"


def text(path: str) -> str:
    """Returns the statement in this file of `sql/`, comment included: PostgreSQL's views and logs show its name."""
    return (FOLDER / f"{path}.sql").read_text()


def read(path: str) -> Statement:
    """Returns the statement in this file, which only reads."""
    return Statement(Path(path).name, text(path), writes=False)


def write(path: str) -> Statement:
    """Returns the statement in this file, which locks and writes."""
    return Statement(Path(path).name, text(path), writes=True)
