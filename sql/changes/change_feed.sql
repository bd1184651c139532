-- change_feed.sql: what has changed since a number: the tasks as they are now, live or in the trash, and the ids of those
-- that were erased and are not there again.
-- A page ends between two numbers, so it may have more than $3 tasks, by those of one change. It comes from the log where that
-- reaches back so far, else from the user's tasks. It never ends at a number that could not be served: the first page of a
-- copy has all tasks that have not changed since erased tasks are told.
-- state is `known` when the counter is among those of $4, `gone` when nobody can tell any more what was since then, else
-- `new`; only then a task is read. version is the number up to which the page tells all: the counter on the last one.
-- $1 text: the user
-- $2 bigint: the number; 0 for all tasks
-- $3 bigint: how many tasks at most, but for the rest of a change
-- $4 text[]: what If-None-Match lists, versions or *; null when it was not sent
with counter as materialized (
    select
        coalesce(version, 0) as version,
        coalesce(erased_floor, 0) as erased_floor,
        $2 >= history_floor and $2 > 0 as is_logged,
        case
            when $2 > coalesce(version, 0) or ($2 > 0 and $2 < greatest(first_version, erased_floor)) then 'gone'
            when '*' = any ($4) or coalesce(version, 0)::text = any ($4) then 'known'
            else 'new'
        end as state
    from (select) one
    left join tasks.account on user_id = $1
), source as materialized (
    select
        state = 'new' and is_logged as is_log,
        state = 'new' and is_logged is not true as is_table,
        case
            when state = 'new' and $2 = 0 and erased_floor > 0 then greatest(
                $3, (select count(*) from tasks.task t where t.user_id = $1 and t.version <= erased_floor)
            )
            else $3
        end as most
    from counter
), found as materialized (
    (
        select c.version, c.task_id, c.operation = 'erase' as is_erased
        from tasks.change c
        where (select is_log from source)
            and c.user_id = $1 and c.version > $2
            and coalesce(
                (select t.version = c.version from tasks.task t where t.user_id = $1 and t.id = c.task_id),
                c.operation = 'erase'
            )
        order by c.version
        fetch first ($3) rows with ties
    )
    union all
    (
        select version, task_id, is_erased
        from (
            select t.version, t.id as task_id, false as is_erased
            from tasks.task t
            where t.user_id = $1 and t.version > $2
            union all
            select c.version, c.task_id, true
            from tasks.change c
            where c.user_id = $1 and c.version > $2 and $2 > 0 and c.operation = 'erase'
                and not exists (select from tasks.task t where t.user_id = $1 and t.id = c.task_id)
        ) either
        where (select is_table from source)
        order by version
        fetch first ((select most from source)) rows with ties
    )
), page as materialized (
    select
        max(version) as last,
        concat('[', string_agg(task, ',' order by version, task_id) filter (where not is_erased), ']')::varchar as tasks,
        coalesce(json_agg(task_id order by version, task_id) filter (where is_erased), '[]') as erased
    from (
        -- as a row of a query: on Citus that of the table has another type
        select *, (
            select tasks.task_json(t) from (select * from tasks.task where user_id = $1 and id = task_id) t
        ) as task
        from found
    ) with_task
), rest as materialized (
    select case
        when last is null then false
        when $2 > 0 then version > last -- the latest change is always there: in a task, or as what it has erased
        else (select max(t.version) from tasks.task t where t.user_id = $1) > last
    end as is_followed
    from counter, page
)
select
    counter.state,
    case when rest.is_followed then greatest(page.last, counter.erased_floor) else counter.version end as version,
    counter.version as counter,
    rest.is_followed,
    page.tasks,
    page.erased
from counter, page, rest
