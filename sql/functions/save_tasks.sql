-- save_tasks: writes many changed tasks, and the rows of their history, as save_task does one by one.
-- p_wanted: the rows as they shall be
-- p_changes: the rows of their history
create or replace function tasks.save_tasks(p_user text, p_wanted tasks.task[], p_changes tasks.change[]) returns void
language plpgsql
-- A plan that is left from when the table was small would compare each of ten thousand tasks with each.
set enable_nestloop = off
as $$
begin
    update tasks.task t
    set title = w.title,
        description = w.description,
        status = w.status,
        priority = w.priority,
        completed_at = w.completed_at,
        updated_at = w.updated_at,
        deleted_at = w.deleted_at,
        version = w.version,
        due_date = w.due_date,
        due_time = w.due_time,
        due_time_zone = w.due_time_zone,
        recurrence = w.recurrence,
        recurrence_anchor = w.recurrence_anchor,
        recurrence_start = w.recurrence_start,
        series_id = w.series_id,
        occurrence = w.occurrence,
        tags = w.tags
    from unnest(p_wanted) w
    where t.user_id = p_user and t.id = w.id
        -- says nothing new, and keeps one task among the user's many from being looked for in all of them
        and t.id = any (array(select k.id from unnest(p_wanted) k));

    insert into tasks.change (user_id, version, task_id, at, operation, before, after)
    select p_user, c.version, c.task_id, c.at, c.operation, c.before, c.after from unnest(p_changes) c;
end
$$;
