-- task_find.sql: one live task's version, and the task as JSON; both null when the user has no such task.
-- task alone is null when the version is among those of $3.
-- $1 text: the user
-- $2 uuid: the task
-- $3 text[]: what If-None-Match lists, versions or *; null when it was not sent
select
    task.version,
    case when '*' = any($3) or task.version::text = any($3) then null else row_to_json(task) end as task
from (select) one
left join tasks.task on task.user_id = $1 and task.id = $2 and task.deleted_at is null
