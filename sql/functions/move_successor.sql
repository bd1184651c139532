-- move_successor: makes the next task of a series when one was completed, or takes an untouched one to the trash when that was
-- reopened; returns its JSON after a completion, null when the rule is at its end.
-- One that is there already stays as it is. But if it is in the trash because of the task before it, it comes back, with
-- what that one has now if nobody has touched it.
-- p_before: the task before it, as it was
-- p_wanted: and as it was written
-- p_id: the successor's id
-- p_plan: as settle_series takes it
-- p_operation: what the history calls it
create or replace function tasks.move_successor(
    p_user text, p_before tasks.task, p_wanted tasks.task, p_id uuid, p_plan jsonb, p_operation text,
    out successor json
)
language plpgsql as $$
declare
    due_date constant text := p_plan -> 'successor' ->> 'due_date';
    found tasks.task;
    wanted tasks.task;
    fields jsonb;
    made record;
begin
    select t.* into found from tasks.task t where t.user_id = p_user and t.id = p_id for no key update;
    if not p_wanted.is_completed then
        if found.id is not null then
            wanted := found;
            wanted.deleted_at := greatest(clock_timestamp(), found.updated_at + interval '1 microsecond');
            wanted.updated_at := wanted.deleted_at;
            wanted.version := p_wanted.version;
            perform tasks.save_task(found, wanted, p_operation);
        end if;
        return;
    end if;

    if found.id is not null then
        successor := row_to_json(found);
    end if;
    if p_before.is_completed or due_date is null then -- a retry, or the end of the rule
        return;
    end if;
    fields := to_jsonb(p_wanted)
        - '{id,user_id,status,is_completed,completed_at,created_at,updated_at,deleted_at,version}'::text[]
        || jsonb_build_object('due_date', due_date, 'occurrence', p_wanted.occurrence + 1);
    if found.id is null then
        made := tasks.insert_task(p_user, null, p_id, fields, null, null, p_wanted.version, null, p_operation);
        successor := made.task;
    elsif found.deleted_at is not null and exists (
        select
        from tasks.change c
        join tasks.change b on b.user_id = p_user and b.version = c.version and b.task_id = p_wanted.id
        where c.user_id = p_user and c.task_id = p_id and (c.after ->> 'deleted_at')::timestamptz = found.deleted_at
    ) then
        wanted := found;
        if tasks.is_untouched(p_user, p_id, p_wanted.id) then
            wanted := jsonb_populate_record(found, fields || '{"status": "pending", "completed_at": null}');
            wanted.is_completed := false;
        end if;
        wanted.deleted_at := null;
        wanted.updated_at := greatest(clock_timestamp(), found.updated_at + interval '1 microsecond');
        wanted.version := p_wanted.version;
        perform tasks.save_task(found, wanted, p_operation);
        successor := row_to_json(wanted);
    end if;
end
$$;
