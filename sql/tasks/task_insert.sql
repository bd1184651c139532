-- task_insert.sql: a new task as JSON, and its version; fails on task_pkey when the id is taken.
-- $1 text: the user
-- $2 uuid: the task
-- $3 text: the title
-- $4 text: the description, or null
-- $5 text: the status
-- $6 text: the priority
-- $7 text: how long to wait for a lock, like 500ms
with number as (
    insert into account (user_id) -- a new one has its first number by the column's default
    select $1
    where set_config('lock_timeout', $7, true) is not null -- until this transaction ends
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
)
select version, row_to_json(inserted) as task
from inserted
