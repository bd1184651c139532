create or replace function tasks.check_task(p_task tasks.task) returns boolean
language plpgsql immutable as $$
declare
    violated text;
begin
    if p_task.status in ('pending', 'in_progress', 'completed')
        and (p_task.completed_at is not null) = (p_task.status = 'completed')
    then
        return true;
    end if;
    violated := case
        when p_task.status not in ('pending', 'in_progress', 'completed') then 'task_status_known'
        else 'task_completed_at_matches_status'
    end;
    raise check_violation using
        message = format('new row for relation "task" violates check constraint "%s"', violated),
        schema = 'tasks', table = 'task', constraint = violated;
end
$$;
alter table tasks.task
    drop column due_date,
    drop column due_time,
    drop column due_time_zone,
    drop column recurrence,
    drop column recurrence_anchor,
    drop column recurrence_start,
    drop column series_id,
    drop column occurrence,
    drop column tags;
drop domain tasks.due_date;
drop domain tasks.due_time;
drop domain tasks.occurrence;
drop domain tasks.time_zone;
drop domain tasks.recurrence;
drop domain tasks.recurrence_anchor;
drop domain tasks.tags;
drop function tasks.is_time_zone;
drop function tasks.check_tags;
