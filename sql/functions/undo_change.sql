-- undo_change: takes back the user's change p_version, all of it, as a change of its own; returns what became of it.
-- outcome: `changed`, with the new number, and the tasks that were changed, as JSON, those in the trash too; `unchanged`,
-- when all is as it was before; `conflict`, when fields have been changed since: an array of {"task_id", "fields"}; nothing
-- is written then; `not_found`, when the number is not the user's; `too_old`, when its history is gone
-- p_lock_timeout: for each lock in this transaction, like 500ms
-- p_version: the change's number
create or replace function tasks.undo_change(
    p_user text, p_lock_timeout text, p_version bigint,
    out outcome text, out version bigint, out tasks json, out conflicts json
)
language plpgsql as $$
declare
    account tasks.account;
    done tasks.change;
    before tasks.task; -- before this undo
    wanted tasks.task;
    is_ jsonb; -- the task as it is
    was jsonb; -- with the fields that the change has written, as they were before it
    became jsonb; -- and after it
    patch jsonb;
    field text;
    changed_since text[];
    befores tasks.task[] := array[]::tasks.task[];
    wanteds tasks.task[] := array[]::tasks.task[];
    all_conflicts jsonb := jsonb_build_array();
    moment timestamptz;
begin
    perform tasks.lock_account(p_user, p_lock_timeout);
    -- what is read from here on is as it is now: each statement has a snapshot of its own
    select a.* into account from tasks.account a where a.user_id = p_user;
    if account.user_id is null or p_version not between account.first_version and account.version then
        outcome := 'not_found';
        return;
    end if;
    if not exists (select from tasks.change c where c.user_id = p_user and c.version = p_version) or exists (
        select
        from tasks.change c
        where c.user_id = p_user and c.version = p_version
            and (c.operation in ('erase', 'erased') or c.at < clock_timestamp() - interval '30 days')
    ) then
        outcome := 'too_old';
        return;
    end if;

    for done in select c.* from tasks.change c where c.user_id = p_user and c.version = p_version order by c.task_id loop
        select t.* into before from tasks.task t where t.user_id = p_user and t.id = done.task_id for no key update;
        moment := greatest(clock_timestamp(), before.updated_at + interval '1 microsecond');
        changed_since := '{}';
        patch := '{}';
        if done.before is null then -- it was created: to the trash, whatever was changed since
            patch := jsonb_build_object('deleted_at', coalesce(before.deleted_at, moment));
        else
            is_ := to_jsonb(before);
            was := to_jsonb(jsonb_populate_record(before, done.before::jsonb));
            became := to_jsonb(jsonb_populate_record(before, done.after::jsonb));
            for field in select k from json_object_keys(done.after) k where k <> 'completed_at' loop
                if field = 'deleted_at' and was ->> field is not null then -- it was restored: to the trash anew
                    patch := patch || jsonb_build_object(field, coalesce(before.deleted_at, moment));
                elsif is_ -> field = became -> field then
                    patch := patch || jsonb_build_object(field, was -> field);
                elsif is_ -> field <> was -> field then
                    changed_since := changed_since || field;
                end if;
            end loop;
        end if;

        wanted := jsonb_populate_record(before, patch);
        wanted.is_completed := wanted.status = 'completed';
        if wanted.is_completed <> before.is_completed then
            wanted.completed_at := case when wanted.is_completed then (was ->> 'completed_at')::timestamptz end;
        end if;
        if wanted is distinct from before and before.deleted_at is not null and not done.after::jsonb ? 'deleted_at' then
            changed_since := array['deleted_at'];
        end if;
        if cardinality(changed_since) > 0 then
            all_conflicts := all_conflicts || jsonb_build_object('task_id', done.task_id, 'fields', changed_since);
        elsif wanted is distinct from before then
            wanted.updated_at := moment;
            befores := befores || before;
            wanteds := wanteds || wanted;
        end if;
    end loop;

    outcome := 'unchanged';
    tasks := '[]';
    if all_conflicts <> '[]' then
        outcome := 'conflict';
        conflicts := all_conflicts::json;
    elsif cardinality(wanteds) > 0 then
        outcome := 'changed';
        version := tasks.next_version(p_user);
        for number in 1 .. cardinality(wanteds) loop
            wanteds[number].version := version;
            perform tasks.save_task(befores[number], wanteds[number], 'undo');
        end loop;
        tasks := (select json_agg(w) from unnest(wanteds) w);
    end if;
end
$$;
