-- insert_task: a new task; returns what became of it, its version, and the task as JSON.
-- outcome: `created`; `exists`, when the id is taken; with a key also `replayed`, when the same request was sent before,
-- whose answer this is then, and `key_used`, when another one was
-- p_lock_timeout: how long to wait for any lock in this transaction, like 500ms
-- p_fields: title, and of description, status, is_completed and priority what is not the default
-- p_key: the Idempotency-Key, under which a retry finds this answer; null without one
-- p_request_hash: SHA-256 of the request
-- p_number: the number of a larger change, which has locked the account; null when this is the whole change
create or replace function tasks.insert_task(
    p_user text, p_lock_timeout text, p_id uuid, p_fields jsonb, p_key text default null,
    p_request_hash bytea default null, p_number bigint default null,
    out outcome text, out version bigint, out task json
)
language plpgsql as $$
declare
    wanted tasks.task := jsonb_populate_record(null::tasks.task, p_fields);
    now timestamptz;
    known bytea;
begin
    perform set_config('lock_timeout', p_lock_timeout, true);
    version := coalesce(p_number, tasks.next_version(p_user));
    if p_key is not null then
        select i.request_hash, i.answer into known, task
        from tasks.idempotency i
        where i.user_id = p_user and i.key = p_key;
    end if;
    if known is null then
        wanted.status := coalesce(wanted.status, case when wanted.is_completed then 'completed' else 'pending' end);
        now := clock_timestamp(); -- read with the account locked, so that created_at grows with version
        insert into tasks.task as t (
            user_id, id, title, description, status, priority, completed_at, created_at, updated_at, version
        )
        values (
            p_user, p_id, wanted.title, wanted.description, wanted.status, coalesce(wanted.priority, 'medium'),
            case when wanted.status = 'completed' then now end, now, now, version
        )
        on conflict (user_id, id) do nothing
        returning * into wanted;
        if found then
            task := row_to_json(wanted);
            insert into tasks.change (user_id, version, task_id, at, operation, after)
            values (
                p_user, version, p_id, now, case when p_number is null then 'create' else 'batch' end,
                tasks.difference(wanted, null)
            );
        end if;
    end if;

    outcome := case
        when known <> p_request_hash then 'key_used'
        when known is not null then 'replayed'
        when task is null then 'exists'
        else 'created'
    end;
    if outcome = 'created' and p_key is not null then
        insert into tasks.idempotency (user_id, key, request_hash, answer, created_at)
        values (p_user, p_key, p_request_hash, task, now);
    elsif outcome <> 'created' and p_number is null then
        version := task ->> 'version';
        update tasks.account a set version = a.version - 1 where a.user_id = p_user; -- nobody has seen the number
    end if;
end
$$;
