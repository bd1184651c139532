-- tag_list.sql: the user's counter, and the tags of the live tasks, most used first, as one JSON array of {"tag", "tasks", "open"}.
-- Those that are alike are one, in the spelling that most tasks have. open counts the tasks that are not completed.
-- tags is null when the counter is among those of $2; no task is read then.
-- $1 text: the user
-- $2 text[]: what If-None-Match lists, versions or *; null when it was not sent
select
    version,
    case
        when '*' = any($2) or version::text = any($2) then null
        else coalesce((
            select json_agg(json_build_object('tag', tag, 'tasks', tasks, 'open', open) order by tasks desc, key collate "C")
            from (
                select
                    key,
                    (array_agg(tag order by tasks desc, tag collate "C"))[1] as tag,
                    sum(tasks)::bigint as tasks,
                    sum(open)::bigint as open
                from (
                    select tag, tasks.tag_key(tag) as key, count(*) as tasks, count(*) filter (where not is_completed) as open
                    from tasks.task, unnest(tags) tag
                    where user_id = $1 and deleted_at is null
                    group by tag
                ) spelled
                group by key
            ) alike
        ), '[]')
    end as tags
from (
    select coalesce((select version from tasks.account where user_id = $1), 0) as version offset 0 -- read once, not twice
) counter
