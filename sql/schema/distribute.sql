-- distribute.sql: what Citus wants otherwise, before the table is distributed. The tables that hold its rows have types of their
-- own, so the check of a row gets fields there; each one costs a little in every write. distributed.sql adds it: rows that
-- are copied to a node would need functions that are not there yet.
create or replace function tasks.check_fields(
    p_user_id text, p_status text, p_completed_at timestamptz, p_due_date date, p_due_time time, p_due_time_zone text,
    p_recurrence text, p_recurrence_anchor text, p_recurrence_start date, p_series_id uuid, p_occurrence integer
)
returns boolean
language plpgsql immutable as $$
declare
    checked tasks.task;
begin
    checked.user_id := p_user_id;
    checked.status := p_status;
    checked.completed_at := p_completed_at;
    checked.due_date := p_due_date;
    checked.due_time := p_due_time;
    checked.due_time_zone := p_due_time_zone;
    checked.recurrence := p_recurrence;
    checked.recurrence_anchor := p_recurrence_anchor;
    checked.recurrence_start := p_recurrence_start;
    checked.series_id := p_series_id;
    checked.occurrence := p_occurrence;
    return tasks.check_task(checked);
end
$$;
alter table tasks.task drop constraint task_consistent;

-- is_time_zone without its exception block, which begins a subtransaction: Citus cannot while it sends rows ("another command
-- is already in progress"), as in a write that runs on the coordinator. So an unknown zone is PostgreSQL's own error.
create or replace function tasks.check_time_zone(p_name text) returns boolean
language plpgsql immutable strict set timezone = 'UTC' as $$
begin
    return set_config('TimeZone', p_name, true) = p_name
        and (p_name ~ '/' or p_name !~ '\d' or p_name in ('EST5EDT', 'CST6CDT', 'MST7MDT', 'PST8PDT', 'GMT0', 'GMT+0', 'GMT-0'));
end
$$;
alter domain tasks.time_zone drop constraint task_due_time_zone_known;
alter domain tasks.time_zone add constraint task_due_time_zone_known check (tasks.check_time_zone(value));
