-- task_json: the task as JSON: what row_to_json() makes of it, in three quarters of the time, for lists.
-- PostgreSQL puts the expression in the place of the call.
-- p_task: the row
create or replace function tasks.task_json(p_task tasks.task) returns text
language sql stable as $$
    select concat(
        '{"id":"', p_task.id,
        '","user_id":', to_json(p_task.user_id),
        ',"title":', to_json(p_task.title),
        ',"description":', coalesce(to_json(p_task.description), 'null'),
        ',"status":"', p_task.status,
        '","priority":"', p_task.priority,
        '","is_completed":', case when p_task.is_completed then 'true' else 'false' end,
        ',"completed_at":', coalesce(to_json(p_task.completed_at), 'null'),
        ',"created_at":', to_json(p_task.created_at),
        ',"updated_at":', to_json(p_task.updated_at),
        ',"deleted_at":', coalesce(to_json(p_task.deleted_at), 'null'),
        ',"version":', p_task.version,
        case
            when p_task.due_date is null and p_task.tags = '{}' then -- as most are: one text in the place of nine
                ',"due_date":null,"due_time":null,"due_time_zone":null,"recurrence":null,"recurrence_anchor":"due"'
                ',"recurrence_start":null,"series_id":null,"occurrence":null,"tags":[]}'
            else concat(
                ',"due_date":', coalesce(to_json(p_task.due_date), 'null'),
                ',"due_time":', coalesce(to_json(p_task.due_time), 'null'),
                ',"due_time_zone":', coalesce(to_json(p_task.due_time_zone), 'null'),
                ',"recurrence":', coalesce(to_json(p_task.recurrence), 'null'),
                ',"recurrence_anchor":"', p_task.recurrence_anchor,
                '","recurrence_start":', coalesce(to_json(p_task.recurrence_start), 'null'),
                ',"series_id":', coalesce(to_json(p_task.series_id), 'null'),
                ',"occurrence":', coalesce(to_json(p_task.occurrence), 'null'),
                ',"tags":', to_json(p_task.tags),
                '}'
            )
        end
    )
$$;
