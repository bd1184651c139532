-- account_lock.sql: locks the user's account until the transaction ends; true when there was none and it was made.
-- $1 text: the user
-- $2 text: how long to wait for a lock, here and in the rest of the transaction, like 500ms
with made as (
    insert into account (user_id)
    select $1
    where set_config('lock_timeout', $2, true) is not null -- until this transaction ends
    on conflict (user_id) do update set version = account.version where false -- locks the row and writes nothing
    returning version
)
select exists (select from made) as made
