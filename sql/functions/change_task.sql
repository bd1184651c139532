-- change_task: one change to one task; returns what became of it, and the task's version and JSON, null when not found.
-- outcome: `changed`; `unchanged`, when nothing differs; `not_found`; `other_version`, when it is not one of p_if_match, and
-- then there is no JSON
-- p_lock_timeout: for each lock in this transaction, like 500ms
-- p_operation: update, complete, delete (to the trash) or restore (from there)
-- p_id: the task
-- p_patch: what is written, of title, description, status, priority and is_completed; what is absent stays. To complete
-- without it is to toggle.
-- p_if_match: the versions that the task may have; null for any
-- p_number: the number of a larger change, which has locked the account; null when this is the whole change
create or replace function tasks.change_task(
    p_user text, p_lock_timeout text, p_operation text, p_id uuid, p_patch jsonb default null,
    p_if_match text[] default null, p_number bigint default null,
    out outcome text, out version bigint, out task json
)
language plpgsql as $$
declare
    before tasks.task;
    wanted tasks.task;
begin
    if p_number is null then
        perform tasks.lock_account(p_user, p_lock_timeout);
    end if;
    select t.* into before from tasks.task t where t.user_id = p_user and t.id = p_id for no key update;
    if before.id is null or (before.deleted_at is not null) <> (p_operation = 'restore') then
        outcome := 'not_found';
        return;
    end if;
    if before.version::text <> all (p_if_match) then
        outcome := 'other_version';
        version := before.version;
        return;
    end if;

    wanted := before;
    case p_operation -- any other is an error
        when 'update', 'complete' then
            wanted := jsonb_populate_record(before, p_patch);
            if p_operation = 'complete' and p_patch is null then
                wanted.is_completed := not before.is_completed;
            end if;
            if wanted.is_completed <> before.is_completed and (p_patch ? 'status') is not true then
                wanted.status := case when wanted.is_completed then 'completed' else 'pending' end;
            end if;
        when 'delete' then
            wanted.deleted_at := greatest(clock_timestamp(), before.updated_at + interval '1 microsecond');
        when 'restore' then
            wanted.deleted_at := null;
    end case;
    wanted.is_completed := wanted.status = 'completed'; -- as the table generates it

    outcome := 'unchanged';
    if wanted is distinct from before then
        outcome := 'changed';
        wanted.updated_at := coalesce(
            wanted.deleted_at, greatest(clock_timestamp(), before.updated_at + interval '1 microsecond')
        );
        wanted.completed_at := case when wanted.is_completed then coalesce(before.completed_at, wanted.updated_at) end;
        wanted.version := coalesce(p_number, tasks.next_version(p_user));
        perform tasks.save_task(before, wanted, case when p_number is null then p_operation else 'batch' end);
    end if;
    version := wanted.version;
    task := row_to_json(wanted);
end
$$;
