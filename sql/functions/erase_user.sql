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

    with found as (select t.id from tasks.task t where t.user_id = p_user limit p_limit)
    delete from tasks.task t using found where t.user_id = p_user and t.id = found.id;
    get diagnostics tasks = row_count;

    with found as (
        select c.version, c.task_id from tasks.change c where c.user_id = p_user limit p_limit - tasks
    )
    delete from tasks.change c
    using found
    where c.user_id = p_user and c.version = found.version and c.task_id = found.task_id;
    get diagnostics changes = row_count;

    with found as (
        select i.key from tasks.idempotency i where i.user_id = p_user limit p_limit - tasks - changes
    )
    delete from tasks.idempotency i using found where i.user_id = p_user and i.key = found.key;
    get diagnostics keys = row_count;

    is_done := tasks + changes + keys < p_limit;
    if is_done then
        delete from tasks.account a where a.user_id = p_user;
        update tasks.number_floor f set number = taken where f.number < taken;
    end if;
end
$$;
