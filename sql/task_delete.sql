-- task_delete.sql: true when the live task went to the trash; false when the user has no such task.
-- $1 text: the user
-- $2 uuid: the task
-- $3 text: how long to wait for a lock, like 500ms
with turn as materialized (
    -- wait for the user's other writers: no deadlock, and numbers become visible in their order
    select user_id
    from account
    where user_id = $1 and set_config('lock_timeout', $3, true) is not null -- until this transaction ends
    for no key update
), before as materialized (
    -- locking reads the newest version of the row, which may be newer than the statement's snapshot
    select greatest(clock_timestamp(), updated_at + interval '1 microsecond') as now
    from task, turn
    where task.user_id = $1 and task.id = $2 and task.deleted_at is null
    for no key update of task
), number as (
    update account
    set version = account.version + 1
    from before
    where account.user_id = $1
    returning account.version
), trashed as (
    update task
    set deleted_at = before.now, updated_at = before.now, version = number.version
    from before, number
    where task.user_id = $1 and task.id = $2
    returning task.id
)
select exists (select from trashed) as deleted
