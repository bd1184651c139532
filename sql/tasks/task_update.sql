-- task_update.sql: the live task's version, and the task as JSON, after the change.
-- Both are null when the user has no such task; task alone is null when its version is not among those of $9, and nothing
-- is written then.
-- What is null stays as it is. When nothing differs, nothing is written and no number is taken.
-- $1 text: the user
-- $2 uuid: the task
-- $3 text: the title, or null
-- $4 boolean: whether the description is written
-- $5 text: the description, or null to clear it
-- $6 text: the status, or null
-- $7 text: the priority, or null
-- $8 boolean: is_completed, or null; it gives way to $6
-- $9 text[]: the versions that If-Match lists; null for any
-- $10 text: how long to wait for a lock, like 500ms
with turn as materialized (
    -- wait for the user's other writers: no deadlock, and numbers become visible in their order
    select case
        when set_config('lock_timeout', $10, true) is not null -- until this transaction ends
            then (select user_id from account where user_id = $1 for no key update)
    end as user_id -- null for who has no account yet: somebody in psql made the task
), before as materialized (
    -- locking reads the newest version of the row, which may be newer than the statement's snapshot
    select task.*
    from task, turn
    where task.user_id = $1 and task.id = $2 and task.deleted_at is null
    for no key update of task
), wanted as (
    select
        coalesce($3, title) as title,
        case when $4 then $5 else description end as description,
        case
            when $6::text is not null then $6
            when $8 then 'completed'
            when not $8 and status = 'completed' then 'pending'
            else status
        end as status,
        coalesce($7, priority) as priority
    from before
    where $9::text[] is null or version::text = any($9)
), change as materialized (
    select wanted.*, greatest(clock_timestamp(), before.updated_at + interval '1 microsecond') as now
    from before, wanted
    where (before.title, before.description, before.status, before.priority)
        is distinct from (wanted.title, wanted.description, wanted.status, wanted.priority)
), number as (
    insert into account (user_id)
    select $1 from change
    on conflict (user_id) do update set version = account.version + 1
    returning version
), updated as (
    update task
    set title = change.title,
        description = change.description,
        status = change.status,
        priority = change.priority,
        completed_at = case when change.status = 'completed' then coalesce(task.completed_at, change.now) end,
        updated_at = change.now,
        version = number.version
    from change, number
    where task.user_id = $1 and task.id = $2
    returning task.*
)
select
    coalesce((select version from updated), (select version from before)) as version,
    coalesce(
        (select row_to_json(updated) from updated),
        (select row_to_json(before) from before, wanted) -- nothing differs
    ) as task
