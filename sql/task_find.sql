-- task_find.sql: one live task as JSON; null when the user has no such task.
-- $1 text: the user
-- $2 uuid: the task
select (
    select row_to_json(task)
    from task
    where user_id = $1 and id = $2 and deleted_at is null
) as task
