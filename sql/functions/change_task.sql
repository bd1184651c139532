-- change_task: one change to one task; returns what became of it, and the task's version and JSON, null when not found.
-- outcome: `changed`; `unchanged`, when nothing differs; `not_found`; `other_version`, when it is not one of p_if_match, and
-- then there is no JSON; those of settle_series: `unplanned`, `invalid_recurrence` and, for a field without the one that it
-- needs, `…_needs_…`; nothing is written then
-- successor: the JSON of the next task in the series, when the change completes a recurring task; else null
-- p_lock_timeout: for each lock in this transaction, like 500ms
-- p_operation: update, complete, delete (to the trash) or restore (from there)
-- p_id: the task
-- p_patch: what is written, of title, description, status, priority, is_completed, due_date, due_time, due_time_zone,
-- recurrence_anchor and tags; what is absent stays. `rule` is a new recurrence, as it was sent, and `recurrence` can be null.
-- To complete without it is to toggle.
-- p_if_match: the versions that the task may have; null for any
-- p_number: the number of a larger change, which has locked the account; null when this is the whole change
-- p_plan: what was reckoned from the answers `unplanned`, see settle_series; null at first
create or replace function tasks.change_task(
    p_user text, p_lock_timeout text, p_operation text, p_id uuid, p_patch jsonb, p_if_match text[], p_number bigint,
    p_plan jsonb,
    out outcome text, out version bigint, out task json, out successor json
)
language plpgsql as $$
declare
    before tasks.task;
    wanted tasks.task;
    settled record;
    successor_id uuid;
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

    -- a task that has no due date, and gets none, has nothing of this
    if before.due_date is not null or p_patch ?| array['due_date', 'due_time', 'due_time_zone', 'rule', 'recurrence_anchor'] then
        settled := tasks.settle_series(p_user, before, wanted, p_patch, p_plan);
        if settled.outcome is not null then
            outcome := settled.outcome;
            task := settled.question;
            return;
        end if;
        wanted := settled.wanted;
        successor_id := settled.successor_id;
    end if;

    outcome := 'unchanged';
    if wanted is distinct from before then
        outcome := 'changed';
        wanted.updated_at := coalesce(
            wanted.deleted_at, greatest(clock_timestamp(), before.updated_at + interval '1 microsecond')
        );
        wanted.completed_at := case when wanted.is_completed then coalesce(before.completed_at, wanted.updated_at) end;
        wanted.version := coalesce(p_number, tasks.next_version(p_user));
        p_operation := case when p_number is null then p_operation else 'batch' end;
        perform tasks.save_task(before, wanted, p_operation);
    end if;
    version := wanted.version;
    task := row_to_json(wanted);
    if successor_id is not null then
        successor := tasks.move_successor(p_user, before, wanted, successor_id, p_plan, p_operation);
    end if;
end
$$;
