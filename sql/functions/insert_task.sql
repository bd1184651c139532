-- insert_task: a new task; returns what became of it, and the task's version and JSON, null when there is no answer.
-- outcome: `created`; `exists`, when the id is taken; with a key also `replayed`, with the answer that the same request got
-- before, and `key_used`, when it was another request
-- successor: the JSON of the next task in the series, when this one is recurring and completed; else null
-- p_lock_timeout: for each lock in this transaction, like 500ms
-- p_id: the task's id, which the caller makes
-- p_fields: title, and of the other fields what is not the default; the recurrence in canonical form. recurrence_start,
-- series_id and occurrence are those of a new series unless they are there.
-- p_key: the Idempotency-Key, under which a retry finds this answer; null without one
-- p_request_hash: SHA-256 of the request; null without a key
-- p_number: the number of a larger change, which has locked the account; null when this is the whole change
-- p_plan: the successor of a task that is recurring and completed, as settle_series takes it but without the question
-- p_operation: what the history calls it; null for create, or batch with a number
create or replace function tasks.insert_task(
    p_user text, p_lock_timeout text, p_id uuid, p_fields jsonb, p_key text, p_request_hash bytea,
    p_number bigint, p_plan jsonb, p_operation text,
    out outcome text, out version bigint, out task json, out successor json
)
language plpgsql as $$
declare
    wanted tasks.task;
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
        wanted.user_id := p_user; -- of a row that is not null, the fields that are not sent are not checked
        wanted := jsonb_populate_record(wanted, p_fields);
        wanted.status := coalesce(wanted.status, case when wanted.is_completed then 'completed' else 'pending' end);
        if wanted.recurrence is not null then
            wanted.recurrence_start := coalesce(wanted.recurrence_start, wanted.due_date);
            wanted.series_id := coalesce(wanted.series_id, p_id);
            wanted.occurrence := coalesce(wanted.occurrence, 1);
        end if;
        now := clock_timestamp(); -- read with the account locked, so that created_at grows with version
        insert into tasks.task as t (
            user_id, id, title, description, status, priority, completed_at, created_at, updated_at, version,
            due_date, due_time, due_time_zone, recurrence, recurrence_anchor, recurrence_start, series_id, occurrence, tags
        )
        values (
            p_user, p_id, wanted.title, wanted.description, wanted.status, coalesce(wanted.priority, 'medium'),
            case when wanted.status = 'completed' then now end, now, now, version,
            wanted.due_date, wanted.due_time, wanted.due_time_zone, wanted.recurrence,
            coalesce(wanted.recurrence_anchor, 'due'), wanted.recurrence_start, wanted.series_id, wanted.occurrence,
            coalesce(wanted.tags, '{}')
        )
        on conflict (user_id, id) do nothing
        returning * into wanted;
        if found then
            task := row_to_json(wanted);
            p_operation := coalesce(p_operation, case when p_number is null then 'create' else 'batch' end);
            insert into tasks.change (user_id, version, task_id, at, operation, after)
            values (
                p_user, version, p_id, now, p_operation,
                task -- change_history trims it
            );
            if wanted.recurrence is not null and wanted.is_completed then
                successor := tasks.move_successor(
                    p_user, null, wanted, (p_plan -> 'successor' ->> 'id')::uuid, p_plan, p_operation
                );
            end if;
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
