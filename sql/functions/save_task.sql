-- save_task: writes the changed task p_wanted, and the row of its history; its version and updated_at are set already.
-- A second change to the task with the same number goes into the row of the first.
-- p_before: the row as it is
-- p_wanted: the row as it is to be
-- p_operation: what the history calls the change
create or replace function tasks.save_task(p_before tasks.task, p_wanted tasks.task, p_operation text) returns void
language plpgsql as $$
declare
    known json;
    original tasks.task; -- as it was before the whole change; null when that created it
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
    select c.before into known
    from tasks.change c
    where c.user_id = p_wanted.user_id and c.version = p_wanted.version and c.task_id = p_wanted.id;
    if known is not null then
        original := json_populate_record(p_before, known);
    end if;
    update tasks.change c
    set before = case when known is not null then tasks.difference(original, p_wanted) end,
        after = tasks.difference(p_wanted, original)
    where c.user_id = p_wanted.user_id and c.version = p_wanted.version and c.task_id = p_wanted.id;
end
$$;
