-- running.sql: what the service runs right now, the longest first: which file of sql/, what it waits for, and for whom.
-- A write is shown by the function that it calls.
--   \i sql/debug/running.sql
select
    pid,
    coalesce(
        substring(query from '^-- (\S+\.sql):'), substring(query from '^select (?:\* from )?(tasks\.\w+)\('), left(query, 40)
    ) as statement,
    state,
    now() - query_start as runs_for,
    wait_event_type || ': ' || wait_event as waits_for,
    pg_blocking_pids(pid) as blocked_by
from pg_stat_activity
where application_name = 'task-service' and (state <> 'idle' or cardinality(pg_blocking_pids(pid)) > 0)
order by query_start;
