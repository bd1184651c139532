-- lock_account: locks the user's account until the transaction ends; there may be none yet.
-- The user's writes queue up here, so they cannot deadlock, and numbers become visible in their order. A statement that
-- waited keeps its old snapshot: whatever depends on the user's rows is read in a later statement.
-- p_lock_timeout: for this and each other lock in this transaction, like 500ms
create or replace function tasks.lock_account(p_user text, p_lock_timeout text) returns void
language plpgsql as $$
begin
    p_lock_timeout := set_config('lock_timeout', p_lock_timeout, true); -- sooner than `perform`, which runs a query
    perform from tasks.account a where a.user_id = p_user for no key update;
end
$$;
