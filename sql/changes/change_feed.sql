-- change_feed.sql: what has changed since a number: the tasks as they are now, live or in the trash, and the ids of those
-- that were erased.
-- A page ends between two numbers, so it may have more than $3 tasks, by those of one change. It comes from the log where that
-- reaches back so far, else from the user's tasks.
-- state is `known` when the counter is among those of $4, `gone` when nobody can tell any more what was since then, else
-- `new`; only then a task is read. version is the number up to which the page tells all: the counter on the last one.
-- $1 text: the user
-- $2 bigint: the number; 0 for all tasks
-- $3 bigint: how many tasks at most, but for the rest of a change
-- $4 text[]: what If-None-Match lists, versions or *; null when it was not sent
with counter as materialized (
    select
        coalesce(version, 0) as version,
        coalesce($2 > version or ($2 > 0 and $2 < greatest(first_version, erased_floor)), $2 > 0) as is_gone,
        '*' = any($4) or coalesce(version, 0)::text = any($4) as is_known,
        $2 > 0 and $2 >= history_floor as is_logged
    from (select) one
    left join tasks.account on user_id = $1
), source as materialized (
    select
        case when is_gone then 'gone' when is_known then 'known' else 'new' end as state,
        not is_gone and is_known is not true and is_logged as is_log,
        not is_gone and is_known is not true and is_logged is not true as is_table
    from counter
), found as materialized (
    (
        select c.version, c.task_id, t as task
        from tasks.change c
        left join tasks.task t on t.user_id = $1 and t.id = c.task_id and t.version = c.version
        where (select is_log from source)
            and c.user_id = $1 and c.version > $2
            and (t.id is not null or c.operation = 'erase')
        order by c.version
        fetch first ($3) rows with ties
    )
    union all
    (
        select version, task_id, task
        from (
            select t.version, t.id as task_id, t as task
            from tasks.task t
            where t.user_id = $1 and t.version > $2
            union all
            select c.version, c.task_id, null
            from tasks.change c
            where c.user_id = $1 and c.version > $2 and $2 > 0 and c.operation = 'erase'
        ) either
        where (select is_table from source)
        order by version
        fetch first ($3) rows with ties
    )
), page as materialized (
    select
        max(version) as last,
        coalesce(json_agg(task order by version, task_id) filter (where (task).id is not null), '[]') as tasks,
        coalesce(json_agg(task_id order by version, task_id) filter (where (task).id is null), '[]') as erased
    from found
), rest as materialized (
    select exists (
        select from counter, source where is_log and version > last
        union all
        select from tasks.task t where (select is_table from source) and t.user_id = $1 and t.version > last
        union all
        select
        from tasks.change c
        where (select is_table from source) and $2 > 0
            and c.user_id = $1 and c.version > last and c.operation = 'erase'
    ) as is_followed
    from page
)
select
    source.state,
    case when rest.is_followed then page.last else counter.version end as version,
    counter.version as counter,
    rest.is_followed,
    page.tasks,
    page.erased
from counter, source, page, rest
