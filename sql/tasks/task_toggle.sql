-- task_toggle.sql: the live task's version, and the task as JSON, completed if it was not, else pending.
-- Both are null when the user has no such task; task alone is null when its version is not among those of $3, and nothing
-- is written then.
-- $1 text: the user
-- $2 uuid: the task
-- $3 text[]: the versions that If-Match lists; null for any
-- $4 text: how long to wait for a lock, like 500ms
with turn as materialized (
    -- wait for the user's other writers: no deadlock, and numbers become visible in their order
    select case
        when set_config('lock_timeout', $4, true) is not null -- until this transaction ends
            then (select user_id from account where user_id = $1 for no key update)
    end as user_id -- null for who has no account yet: somebody in psql made the task
), before as materialized (
    -- locking reads the newest version of the row, which may be newer than the statement's snapshot
    select task.*
    from task, turn
    where task.user_id = $1 and task.id = $2 and task.deleted_at is null
    for no key update of task
), change as materialized (
    select
        case when status = 'completed' then 'pending' else 'completed' end as status,
        greatest(clock_timestamp(), updated_at + interval '1 microsecond') as now
    from before
    where $3::text[] is null or version::text = any($3)
), number as (
    insert into account (user_id)
    select $1 from change
    on conflict (user_id) do update set version = account.version + 1
    returning version
), updated as (
    update task
    set status = change.status,
        completed_at = case when change.status = 'completed' then change.now end,
        updated_at = change.now,
        version = number.version
    from change, number
    where task.user_id = $1 and task.id = $2
    returning task.*
)
select
    coalesce((select version from updated), (select version from before)) as version,
    (select row_to_json(updated) from updated) as task
