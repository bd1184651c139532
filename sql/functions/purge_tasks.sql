-- purge_tasks: erases tasks of the user that are in the trash, for good; returns how many.
-- That takes one number, under which the feed tells it, and their history goes too. What was restored meanwhile stays.
-- p_lock_timeout: for each lock in this transaction, like 500ms
-- p_ids: what to erase
-- p_before: only those that went to the trash before this
create or replace function tasks.purge_tasks(p_user text, p_lock_timeout text, p_ids uuid[], p_before timestamptz)
returns bigint
language plpgsql as $$
declare
    number bigint;
    erased uuid[];
begin
    perform tasks.lock_account(p_user, p_lock_timeout);
    with gone as (
        delete from tasks.task t
        where t.user_id = p_user and t.id = any (p_ids) and t.deleted_at < p_before
        returning t.id
    )
    select array_agg(g.id) into erased from gone g;
    if erased is not null then
        number := tasks.next_version(p_user);
        update tasks.change c
        set operation = 'erased', before = null, after = null
        where c.user_id = p_user and c.task_id = any (erased);
        insert into tasks.change (user_id, version, task_id, at, operation)
        select p_user, number, e.id, clock_timestamp(), 'erase' from unnest(erased) e (id);
    end if;
    return coalesce(cardinality(erased), 0)::bigint;
end
$$;
