-- trash_oldest.sql: the tasks that have been in the trash longest, of all users, as two arrays of the same length.
-- $1 timestamptz: only what went to the trash before this
-- $2 bigint: how many at most
select
    coalesce(array_agg(user_id), array[]::text[]) as users,
    coalesce(array_agg(id), array[]::uuid[]) as tasks
from (
    select user_id, id
    from tasks.task
    where deleted_at < $1
    order by deleted_at
    limit $2
) oldest
