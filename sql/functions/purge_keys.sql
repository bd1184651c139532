-- purge_keys: erases keys of the user's creates; returns how many.
-- p_lock_timeout: for each lock in this transaction, like 500ms
-- p_keys: what to erase
-- p_before: only those from before this
create or replace function tasks.purge_keys(p_user text, p_lock_timeout text, p_keys text[], p_before timestamptz)
returns bigint
language plpgsql as $$
declare
    erased bigint;
begin
    perform tasks.lock_account(p_user, p_lock_timeout); -- two that erase the same keys take turns
    delete from tasks.idempotency i where i.user_id = p_user and i.key = any (p_keys) and i.created_at < p_before;
    get diagnostics erased = row_count;
    return erased;
end
$$;
