"""The tags of a user's tasks."""

from typing import NamedTuple

from service.db.coalescer import Coalescer
from service.queries import call, read

TAG_LIST = read("tags/tag_list")
RENAME_TAG = call("select * from tasks.rename_tag($1, $2, $3, $4)")


async def list_tags(db: Coalescer, user_id: str, if_none_match: list[str] | None) -> tuple[int, bytes | None]:
    """Returns the user's counter, and the tags of the live tasks as a JSON array, unless that counter is known."""
    version, found = await db.fetch(TAG_LIST, user_id, if_none_match)
    return version, found


class Renamed(NamedTuple):
    """What became of a renaming."""

    version: int | None  # of the change; None when nothing has changed
    tasks: int  # how many have changed, those in the trash too


async def rename_tag(db: Coalescer, user_id: str, old: str, new: str | None) -> Renamed:
    """Renames the tag, in whatever spelling, in all of the user's tasks, or removes it, as one change."""
    renamed = Renamed(*await db.fetch(RENAME_TAG, user_id, old, new))
    db.hub.tell(user_id, renamed.version or 0)
    return renamed
