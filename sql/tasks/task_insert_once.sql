-- task_insert_once.sql: a new task as JSON, and its version, with the key under which a retry finds the answer.
-- Fails on task_pkey when the id is taken, on idempotency_pkey when the key is; then nothing is written, no number either.
-- $1 text: the user
-- $2 uuid: the task
-- $3 text: the title
-- $4 text: the description, or null
-- $5 text: the status
-- $6 text: the priority
-- $7 text: the key
-- $8 bytea: the request's hash
-- $9 text: how long to wait for a lock, like 500ms
with number as (
    insert into account (user_id) -- a new one has its first number by the column's default
    select $1
    where set_config('lock_timeout', $9, true) is not null -- until this transaction ends
    on conflict (user_id) do update set version = account.version + 1
    returning version
), moment as (
    -- the clock is read once the account is locked, so that created_at grows with version
    select version, clock_timestamp() as now from number
), inserted as (
    insert into task (user_id, id, title, description, status, priority, completed_at, created_at, updated_at, version)
    select $1, $2, $3, $4, $5, $6, case when $5 = 'completed' then now end, now, now, version
    from moment
    returning *
), answer as materialized (
    select version, row_to_json(inserted) as task, created_at from inserted
), kept as (
    insert into idempotency (user_id, key, request_hash, answer, created_at)
    select $1, $7, $8, task, created_at from answer
)
select version, task
from answer
