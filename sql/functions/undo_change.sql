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
language plpgsql
-- A plan that is left from when the tables were small would read all of them for each task.
set enable_seqscan = off
as $$
declare
    account tasks.account;
    done record; -- what it has done to a task
    was jsonb; -- the fields that it has written, as they were before it
    became jsonb; -- and after it
    before tasks.task; -- the task as it is now
    wanted tasks.task; -- and without the change
    now_fields jsonb; -- these two
    wanted_fields jsonb;
    old jsonb; -- the fields in which they differ
    new jsonb;
    changed_since text[];
    wanteds tasks.task[] := array[]::tasks.task[];
    entries tasks.change[] := array[]::tasks.change[];
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
    if p_version <= account.history_floor then
        outcome := 'too_old';
        return;
    end if;

    -- One statement reads all tasks, and two write them: on Citus each takes half a millisecond. By the subquery each task is
    -- looked up with its key, however many there are; a join might compare each with all of the user's.
    for done in
        select c.task_id, c.at, c.operation, c.before as was, c.after as became, t.id, row(t.*)::tasks.task as task
        from tasks.change c
        left join lateral (
            select t.* from tasks.task t where t.user_id = p_user and t.id = c.task_id for no key update
        ) t on true
        where c.user_id = p_user and c.version = p_version
        order by c.task_id
    loop
        if done.id is null or done.operation in ('erase', 'erased') or done.at < clock_timestamp() - interval '30 days' then
            outcome := 'too_old';
            return;
        end if;
        before := done.task;
        now_fields := to_jsonb(before);
        moment := greatest(clock_timestamp(), before.updated_at + interval '1 microsecond');
        was := done.was::jsonb;
        became := done.became::jsonb;
        if was is null then -- it was created: to the trash, whatever was changed since
            was := jsonb_build_object('deleted_at', moment);
            became := '{"deleted_at": null}';
        end if;

        changed_since := array(
            select f.key
            from jsonb_each(was) f
            where f.key not in ('deleted_at', 'completed_at')
                and now_fields -> f.key not in (became -> f.key, f.value)
        );
        wanted := jsonb_populate_record(before, was - array['deleted_at', 'completed_at']);
        if was ? 'deleted_at' and (was ->> 'deleted_at' is null) <> (before.deleted_at is null) then
            wanted.deleted_at := case when before.deleted_at is null then moment end; -- to the trash anew
        end if;
        wanted.is_completed := wanted.status = 'completed';
        if not wanted.is_completed then
            wanted.completed_at := null;
        elsif not before.is_completed or before.completed_at = (became ->> 'completed_at')::timestamptz then
            wanted.completed_at := (was ->> 'completed_at')::timestamptz;
        end if;

        -- in the trash since then; a renamed tag reaches into the trash, and so does its undo
        if before.deleted_at > done.at and not was ? 'deleted_at' and wanted is distinct from before then
            changed_since := changed_since || 'deleted_at'::text;
        end if;
        -- What would be without a field that it needs, since one of the two has been changed.
        changed_since := changed_since || array(
            select distinct f.name
            from (
                values
                    ('due_date', 'due_time', wanted.due_date is null and wanted.due_time is not null),
                    ('due_time', 'due_time_zone', wanted.due_time is null and wanted.due_time_zone is not null),
                    ('due_date', 'recurrence', wanted.due_date is null and wanted.recurrence is not null),
                    (
                        'recurrence',
                        'recurrence_anchor',
                        wanted.recurrence_anchor = 'completion'
                            and (wanted.recurrence ~ '^FREQ=[A-Z]+(;INTERVAL=[0-9]+)?$') is not true
                    ),
                    (
                        'recurrence',
                        'recurrence_anchor',
                        wanted.recurrence_anchor = 'due'
                            and wanted.recurrence ~ '^FREQ=(WEEKLY|MONTHLY|YEARLY)(;INTERVAL=[0-9]+)?$'
                    )
            ) rule (needed, needing, is_broken),
            unnest(array[rule.needed, rule.needing]) f (name)
            where rule.is_broken and not was ? f.name and f.name <> all (changed_since)
        );
        if cardinality(changed_since) > 0 then
            all_conflicts := all_conflicts || jsonb_build_object('task_id', done.task_id, 'fields', changed_since);
        elsif wanted is distinct from before then
            wanted.updated_at := moment;
            wanteds := wanteds || wanted;
            wanted_fields := to_jsonb(wanted);
            select jsonb_object_agg(f.key, now_fields -> f.key), jsonb_object_agg(f.key, wanted_fields -> f.key)
            into old, new
            from jsonb_object_keys(was || '{"completed_at": null}') f (key)
            where now_fields -> f.key <> wanted_fields -> f.key;
            entries := entries || row(p_user, null, done.task_id, moment, 'undo', old, new)::tasks.change;
        end if;
    end loop;

    if not found then -- lost with what a backup lacks
        outcome := 'too_old';
        return;
    end if;
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
            entries[number].version := version;
        end loop;
        perform tasks.save_tasks(p_user, wanteds, entries);
        tasks := (select json_agg(w) from unnest(wanteds) w);
    end if;
end
$$;
