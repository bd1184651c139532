-- renumber_user: lifts the user's counter beyond every number that was given and is lost, since a backup was restored;
-- returns how many counters, 1 or 0.
-- That is the milliseconds since 1970; and as a counter may be ahead of the clock, a million at least. The feed tells nobody
-- what was before: whoever comes with an older number starts again. Tasks keep their versions, and history can be undone.
-- p_lock_timeout: for each lock in this transaction, like 500ms
create or replace function tasks.renumber_user(p_user text, p_lock_timeout text) returns bigint
language plpgsql as $$
declare
    number bigint;
    lifted bigint;
begin
    perform tasks.lock_account(p_user, p_lock_timeout);
    select greatest(a.version + 1000000, floor(extract(epoch from clock_timestamp()) * 1000)::bigint) into number
    from tasks.account a
    where a.user_id = p_user;
    update tasks.account a set version = number, erased_floor = number where a.user_id = p_user;
    get diagnostics lifted = row_count;
    return lifted;
end
$$;
