-- purge_tasks: erases tasks of the user that are in the trash, for good; returns how many.
-- That takes one number, so that lists change. What was restored meanwhile stays.
-- p_lock_timeout: for each lock in this transaction, like 500ms
-- p_ids: what to erase
-- p_before: only those that went to the trash before this
create or replace function tasks.purge_tasks(p_user text, p_lock_timeout text, p_ids uuid[], p_before timestamptz)
returns bigint
language plpgsql as $$
declare
    erased bigint;
begin
    perform tasks.lock_account(p_user, p_lock_timeout);
    delete from tasks.task t where t.user_id = p_user and t.id = any (p_ids) and t.deleted_at < p_before;
    get diagnostics erased = row_count;
    if erased > 0 then
        perform tasks.next_version(p_user);
    end if;
    return erased;
end
$$;
