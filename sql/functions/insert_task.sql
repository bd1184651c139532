-- insert_task: a new task; returns what became of it, and the task's version and JSON, null when there is no answer.
-- outcome: `created`; `exists`, when the id is taken; with a key also `replayed`, with the answer that the same request got
-- before, and `key_used`, when it was another request
-- p_lock_timeout: for each lock in this transaction, like 500ms
-- p_id: the task's id, which the caller makes
-- p_fields: title, and of description, status, is_completed and priority what is not the default
-- p_key: the Idempotency-Key, under which a retry finds this answer; null without one
-- p_request_hash: SHA-256 of the request; null without a key
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
    version := p_number;
    if version is null then
        p_lock_timeout := set_config('lock_timeout', p_lock_timeout, true);
        version := tasks.next_version(p_user);
    end if;
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
                task -- change_history trims it
            );
        end if;
    end if;

    outcome := case
        when known <> p_request_hash then 'key_used'
        when known is not null then 'replayed'
        when task is null then 'exists'
        else 'created'
    end;
    if outcome = 'created' then
        if p_key is not null then
            insert into tasks.idempotency (user_id, key, request_hash, answer, created_at)
            values (p_user, p_key, p_request_hash, task, now);
        end if;
        return;
    end if;
    if p_number is null then
        update tasks.account a set version = a.version - 1 where a.user_id = p_user; -- nobody has seen the number
    end if;
    if outcome = 'key_used' then
        task := null;
    end if;
    version := (task ->> 'version')::bigint;
end
$$;
