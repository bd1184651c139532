-- last_changes.sql: a user's last changes, the newest first: what each did to which task. `undo` takes one back by its version.
--   \set user demo
--   \i sql/debug/last_changes.sql
\if :{?user}
\else
    \set user demo
\endif
select
    c.version,
    date_trunc('second', c.at) as at,
    c.operation,
    c.task_id,
    t.title as title_now,
    (
        select string_agg(
            f.key || ': ' || case when c.before is null then '' else coalesce(left(c.before ->> f.key, 40), 'null') || ' → ' end
                || coalesce(left(f.value, 40), 'null'),
            E'\n'
        )
        from json_each_text(c.after) f
        where c.before is not null or f.key in (
            'title', 'description', 'status', 'priority', 'due_date', 'due_time', 'due_time_zone', 'recurrence', 'tags'
        ) and f.value <> '[]'
    ) as changes
from tasks.change c
left join tasks.task t on t.user_id = c.user_id and t.id = c.task_id
where c.user_id = :'user'
order by c.version desc, c.task_id
limit 50;
