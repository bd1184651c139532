-- task_operate.sql: one operation of a batch: its HTTP status, and the task as JSON after it.
-- Run it after account_lock.sql, in the same transaction: nobody else of the service writes the user's tasks meanwhile.
-- task is null for a delete, and when the status is 404, 409 or 412; nothing is written then.
-- What is null stays as it is. When nothing differs, nothing is written and no number is taken.
-- $1 text: the user
-- $2 text: create, update, complete, delete or restore
-- $3 uuid: the task
-- $4 bigint: the version that the task must have, or null for any
-- $5 text: the title, or null
-- $6 boolean: whether the description is written
-- $7 text: the description, or null to clear it
-- $8 text: the status, or null
-- $9 text: the priority, or null
-- $10 boolean: is_completed, or null; it gives way to $8; to complete with neither is to toggle
with before as materialized (
    -- locking reads the newest version of the row, which somebody in psql may have made just now
    select task.*
    from task
    where task.user_id = $1 and task.id = $3
    for no key update
), verdict as materialized (
    select case
        when $2 = 'create' then case when before.id is null then 201 else 409 end
        when before.id is null or (before.deleted_at is not null) <> ($2 = 'restore') then 404
        when before.version <> $4 then 412
        when $2 = 'delete' then 204
        else 200
    end as status
    from (select) one
    left join before on true
), wanted as materialized (
    select
        coalesce($5, before.title) as title,
        case when $6 then $7 else before.description end as description,
        case
            when $8::text is not null then $8
            when $10 then 'completed'
            when not $10 and before.status = 'completed' then 'pending'
            when $10 is null and $2 = 'complete' then
                case when before.status = 'completed' then 'pending' else 'completed' end
            else before.status
        end as status,
        coalesce($9, before.priority) as priority
    from verdict
    left join before on true
    where verdict.status < 300
), change as materialized (
    -- without a row before, greatest is the clock alone
    select wanted.*, greatest(clock_timestamp(), before.updated_at + interval '1 microsecond') as now
    from wanted
    left join before on true
    where $2 in ('create', 'delete', 'restore')
        or (before.title, before.description, before.status, before.priority)
            is distinct from (wanted.title, wanted.description, wanted.status, wanted.priority)
), number as (
    update account
    set version = account.version + 1
    from change
    where account.user_id = $1
    returning account.version
), inserted as (
    insert into task (user_id, id, title, description, status, priority, completed_at, created_at, updated_at, version)
    select $1, $3, title, description, status, priority, case when status = 'completed' then now end, now, now, version
    from change, number
    where $2 = 'create'
    returning *
), updated as (
    update task
    set title = change.title,
        description = change.description,
        status = change.status,
        priority = change.priority,
        completed_at = case when change.status = 'completed' then coalesce(task.completed_at, change.now) end,
        updated_at = change.now,
        deleted_at = case when $2 = 'delete' then change.now end,
        version = number.version
    from change, number
    where task.user_id = $1 and task.id = $3 and $2 <> 'create'
    returning task.*
)
select
    status,
    case
        when status = 201 then (select row_to_json(inserted) from inserted)
        when status = 200 then coalesce(
            (select row_to_json(updated) from updated),
            (select row_to_json(before) from before) -- nothing differs
        )
    end as task
from verdict
