-- distribute.sql: what Citus wants otherwise, before the table is distributed. The tables that hold its rows have types of their
-- own, so the check of a row gets fields there; each one costs a little in every write.
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
alter table tasks.task
    drop constraint task_consistent,
    add constraint task_consistent check (tasks.check_fields(
        user_id, status, completed_at, due_date, due_time, due_time_zone, recurrence, recurrence_anchor, recurrence_start,
        series_id, occurrence
    ));
