-- purge_changes: erases old history of the user; returns how many rows.
-- From then on the feed answers older numbers from the tasks, and not at all those of which it cannot tell all erased tasks.
-- p_lock_timeout: for each lock in this transaction, like 500ms
-- p_before: only what is from before this
-- p_erased_before: only from before this, where it tells that a task was erased
-- p_limit: how many rows at most
create or replace function tasks.purge_changes(
    p_user text, p_lock_timeout text, p_before timestamptz, p_erased_before timestamptz, p_limit integer
)
returns bigint
language plpgsql as $$
declare
    history_end bigint;
    erased_end bigint;
    gone bigint;
begin
    perform tasks.lock_account(p_user, p_lock_timeout);
    with erased as (
        delete from tasks.change c
        where c.user_id = p_user and c.ctid = any (array( -- by an array: see erase_user
            select f.ctid
            from tasks.change f
            where f.user_id = p_user
                and f.at < case when f.operation = 'erase' then p_erased_before else p_before end
            order by f.version
            limit p_limit
        ))
        returning c.version, c.operation
    )
    select
        max(e.version) filter (where e.operation <> 'erase'),
        max(e.version) filter (where e.operation = 'erase'),
        count(*)
    into history_end, erased_end, gone
    from erased e;
    update tasks.account a
    set history_floor = greatest(a.history_floor, history_end), erased_floor = greatest(a.erased_floor, erased_end)
    where a.user_id = p_user and gone > 0;
    return gone;
end
$$;
