-- key_oldest.sql: the oldest keys of creates, of all users, as two arrays of the same length.
-- $1 timestamptz: only those from before this
-- $2 bigint: how many at most
select
    coalesce(array_agg(user_id), array[]::text[]) as users,
    coalesce(array_agg(key), array[]::text[]) as keys
from (
    select user_id, key
    from tasks.idempotency
    where created_at < $1
    order by created_at
    limit $2
) oldest
