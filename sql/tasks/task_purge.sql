-- task_purge.sql: erases tasks that are in the trash, for good; how many. That takes one number, so that lists change.
-- $1 text: the user
-- $2 uuid[]: the tasks
-- $3 timestamptz: only those that went to the trash before this
-- $4 text: how long to wait for a lock, like 500ms
with turn as materialized (
    -- wait for the user's other writers: no deadlock, and numbers become visible in their order
    select case
        when set_config('lock_timeout', $4, true) is not null -- until this transaction ends
            then (select user_id from account where user_id = $1 for no key update)
    end as user_id -- null for who has no account yet: somebody in psql made the task
), doomed as materialized (
    -- locking reads the newest version of the row: what was restored, or erased, meanwhile is not among them
    select task.id
    from task, turn
    where task.user_id = $1 and task.id = any($2) and task.deleted_at < $3
    for update of task
), erased as (
    delete from task
    using doomed
    where task.user_id = $1 and task.id = doomed.id
    returning task.id
), number as (
    insert into account (user_id)
    select $1 where exists (select from doomed)
    on conflict (user_id) do update set version = account.version + 1
)
select count(*) as erased
from erased
