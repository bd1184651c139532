-- save_task: writes the changed task p_wanted, and the row of its history; its version and updated_at are set already.
-- A second change to the task with the same number goes into the row of the first.
-- p_before: the row as it is
-- p_wanted: the row as it is to be
-- p_operation: what the history calls the change
create or replace function tasks.save_task(p_before tasks.task, p_wanted tasks.task, p_operation text) returns void
language plpgsql as $$
declare
    earlier jsonb;
    later jsonb;
begin
    update tasks.task t
    set title = p_wanted.title,
        description = p_wanted.description,
        status = p_wanted.status,
        priority = p_wanted.priority,
        completed_at = p_wanted.completed_at,
        updated_at = p_wanted.updated_at,
        deleted_at = p_wanted.deleted_at,
        version = p_wanted.version
    where t.user_id = p_wanted.user_id and t.id = p_wanted.id;

    if p_before.version is distinct from p_wanted.version then
        insert into tasks.change (user_id, version, task_id, at, operation, before, after)
        values (
            p_wanted.user_id, p_wanted.version, p_wanted.id, p_wanted.updated_at, p_operation,
            tasks.difference(p_before, p_wanted), tasks.difference(p_wanted, p_before)
        );
        return;
    end if;
    select c.before::jsonb, c.after::jsonb into earlier, later
    from tasks.change c
    where c.user_id = p_wanted.user_id and c.version = p_wanted.version and c.task_id = p_wanted.id;
    earlier := tasks.difference(p_before, p_wanted)::jsonb || earlier; -- still null when the change created the task
    later := later || tasks.difference(p_wanted, p_before)::jsonb;
    update tasks.change c
    set before = case when earlier is not null then (
            select coalesce(json_object_agg(e.key, e.value), '{}') -- all may be as it was
            from jsonb_each(earlier) e
            where e.value <> later -> e.key
        ) end,
        after = (
            select coalesce(json_object_agg(e.key, e.value), '{}')
            from jsonb_each(later) e
            where e.value <> coalesce(earlier -> e.key, 'null')
        )
    where c.user_id = p_wanted.user_id and c.version = p_wanted.version and c.task_id = p_wanted.id;
end
$$;
