-- without_series: returns the row without its recurrence.
-- p_task: the row
create or replace function tasks.without_series(p_task tasks.task) returns tasks.task
language plpgsql immutable as $$
begin
    p_task.recurrence := null;
    p_task.recurrence_anchor := 'due';
    p_task.recurrence_start := null;
    p_task.series_id := null;
    p_task.occurrence := null;
    return p_task;
end
$$;
