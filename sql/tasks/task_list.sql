-- task_list.sql: the user's counter, and the live tasks, newest first, as one JSON array.
-- tasks is null when the counter is among those of $2; no task is read then.
-- $1 text: the user
-- $2 text[]: what If-None-Match lists, versions or *; null when it was not sent
select
    version,
    case
        when '*' = any($2) or version::text = any($2) then null
        else (
            select concat('[', string_agg(tasks.task_json(t), ','), ']')::varchar -- as json it would be parsed
            from (
                select *
                from tasks.task
                where user_id = $1 and deleted_at is null
                order by created_at desc, id
            ) t
        )
    end as tasks
from (
    select coalesce((select version from tasks.account where user_id = $1), 0) as version offset 0 -- read once, not twice
) counter
