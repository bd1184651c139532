"""The query module: each statement of `sql/` has one function here, and no other code runs SQL on the tables.

JSON comes back as the bytes that PostgreSQL made. Every function raises db.pool.Unavailable when the database does not
answer in time; a write that raises it may or may not have happened.
"""

from pathlib import Path

from service.db.coalescer import Statement

FOLDER = Path(__file__).parents[2] / "sql"


def read(path: str, *, is_of_user: bool = True) -> Statement:
    """Returns the statement in this file of `sql/`, which only reads.

    Its comment is sent along: PostgreSQL's views and logs show the file's name.
    """
    return Statement((FOLDER / f"{path}.sql").read_text(), writes=False, is_of_user=is_of_user)


def call(sql: str) -> Statement:
    """Returns the statement, which calls a function of `sql/functions/` that writes."""
    return Statement(sql, writes=True)
