-- key_purge.sql: erases keys of creates; how many.
-- $1 text: the user
-- $2 text[]: the keys
-- $3 timestamptz: only those from before this
-- $4 text: how long to wait for a lock, like 500ms
with turn as materialized (
    -- wait for the user's other writers: two that erase the same keys must not wait for each other
    select case
        when set_config('lock_timeout', $4, true) is not null -- until this transaction ends
            then (select user_id from account where user_id = $1 for no key update)
    end as user_id
), erased as (
    delete from idempotency
    using turn
    where idempotency.user_id = $1 and idempotency.key = any($2) and idempotency.created_at < $3
    returning idempotency.key
)
select count(*) as erased
from erased
