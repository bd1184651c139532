-- erase_user: erases rows of the user, whatever they are, for good; returns how many of each kind, and whether these were the
-- last; then the account is gone too.
-- Each step takes a number, and from then on nobody is told what was before it: so no copy, and no list that is known by
-- its counter, keeps what is gone, wherever the steps end. What is created between two steps, the next one erases.
-- p_lock_timeout: for each lock in this transaction, like 500ms
-- p_limit: how many rows at most
create or replace function tasks.erase_user(
    p_user text, p_lock_timeout text, p_limit integer,
    out tasks bigint, out changes bigint, out keys bigint, out is_done boolean
)
language plpgsql as $$
declare
    taken bigint;
begin
    p_lock_timeout := set_config('lock_timeout', p_lock_timeout, true);
    taken := tasks.next_version(p_user); -- makes the account, where there was none: without it nothing would be locked
    update tasks.account a set history_floor = taken, erased_floor = taken where a.user_id = p_user;

    -- By arrays, and not by joins: a plan that is left from when the table was small would look for the thousand rows anew
    -- for each of the user's.
    delete from tasks.task t
    where t.user_id = p_user
        and t.ctid = any (array(select f.ctid from tasks.task f where f.user_id = p_user limit p_limit));
    get diagnostics tasks = row_count;

    delete from tasks.change c
    where c.user_id = p_user
        and c.ctid = any (array(select f.ctid from tasks.change f where f.user_id = p_user limit p_limit - tasks));
    get diagnostics changes = row_count;

    delete from tasks.idempotency i
    where i.user_id = p_user and i.ctid = any (
        array(select f.ctid from tasks.idempotency f where f.user_id = p_user limit p_limit - tasks - changes)
    );
    get diagnostics keys = row_count;

    is_done := tasks + changes + keys < p_limit;
    if is_done then
        delete from tasks.account a where a.user_id = p_user;
        -- A new counter begins at the clock. Where that is beyond this one, however clocks differ, nothing has to be kept:
        -- on Citus this row is on every node, and one that is away would keep everybody from being erased.
        if taken > floor(extract(epoch from clock_timestamp()) * 1000) - 3600000 then
            update tasks.number_floor f set number = taken where f.number < taken;
        end if;
    end if;
end
$$;
