-- settle_series: what else a change writes to a task that is due some day, or shall be: what needs a field that was cleared is
-- cleared with it, a changed rule begins a new series, and a reopened task may lose its rule to its successor.
-- The dates of a rule are reckoned by the service. Where they are needed, the caller gets a question, and calls again with
-- a plan that has the answer. It is of use while the question is the same: nothing is locked in between.
-- outcome: null, with the row as it shall be, and the id of the successor that the change concerns; `unplanned`, with the
-- question; `invalid_recurrence`, when the plan says so; `due_time_needs_due_date`, `due_time_zone_needs_due_time`,
-- `recurrence_needs_due_date` and `recurrence_anchor_needs_recurrence`
-- p_before: the row as it is
-- p_wanted: the row with what was asked for
-- p_patch: what was asked for, as change_task takes it
-- p_plan: {"rule": {"of": question, "recurrence": the rule in canonical form, null for none that is understood},
-- "successor": {"of": question, "id": the successor's id, "due_date": its day, null at the end of the rule}}
create or replace function tasks.settle_series(
    p_user text, p_before tasks.task, p_wanted tasks.task, p_patch jsonb, p_plan jsonb,
    out outcome text, out question json, out wanted tasks.task, out successor_id uuid
)
language plpgsql as $$
declare
    rule text;
    asked jsonb;
    series tasks.task; -- the task that has a successor
    successor tasks.task;
begin
    wanted := p_wanted;
    if wanted.due_date is null then
        if p_patch ->> 'due_time' is not null then
            outcome := 'due_time_needs_due_date';
            return;
        elsif p_patch ? 'rule' then
            outcome := 'recurrence_needs_due_date';
            return;
        end if;
        wanted.due_time := null;
        wanted.recurrence := null;
    end if;
    if wanted.due_time is null then
        if p_patch ->> 'due_time_zone' is not null then
            outcome := 'due_time_zone_needs_due_time';
            return;
        end if;
        wanted.due_time_zone := null;
    end if;

    rule := coalesce(p_patch ->> 'rule', wanted.recurrence);
    if rule is null then
        if p_patch ->> 'recurrence_anchor' = 'completion' then
            outcome := 'recurrence_anchor_needs_recurrence';
            return;
        end if;
        wanted := tasks.without_series(wanted);
    elsif rule is distinct from p_before.recurrence or wanted.recurrence_anchor <> p_before.recurrence_anchor then
        asked := jsonb_build_object(
            'rule', rule, 'due_date', wanted.due_date, 'recurrence_anchor', wanted.recurrence_anchor
        );
        if asked is distinct from p_plan -> 'rule' -> 'of' then
            outcome := 'unplanned';
            question := asked::json;
            return;
        end if;
        wanted.recurrence := p_plan -> 'rule' ->> 'recurrence';
        if wanted.recurrence is null then
            outcome := 'invalid_recurrence';
            return;
        end if;
        if wanted.recurrence is distinct from p_before.recurrence
            or wanted.recurrence_anchor <> p_before.recurrence_anchor
        then
            wanted.recurrence_start := wanted.due_date;
            wanted.series_id := wanted.id;
            wanted.occurrence := 1;
        end if;
    end if;

    if wanted.is_completed
        and wanted.recurrence is not null
        and (not p_before.is_completed or p_patch ?| array['status', 'is_completed'])
    then
        series := wanted;
    elsif p_before.is_completed and p_before.recurrence is not null and not wanted.is_completed then
        series := p_before;
    else
        return;
    end if;
    asked := jsonb_build_object(
        'recurrence', series.recurrence,
        'recurrence_anchor', series.recurrence_anchor,
        'recurrence_start', series.recurrence_start,
        'series_id', series.series_id,
        'occurrence', series.occurrence,
        'due_time_zone', series.due_time_zone
    );
    if asked is distinct from p_plan -> 'successor' -> 'of' then
        outcome := 'unplanned';
        question := asked::json;
        return;
    end if;
    successor_id := (p_plan -> 'successor' ->> 'id')::uuid;
    if not wanted.is_completed then -- reopened
        select t.* into successor from tasks.task t where t.user_id = p_user and t.id = successor_id for no key update;
        if successor.deleted_at is not null
            or successor.is_completed
            or not tasks.is_untouched(p_user, successor.id, wanted.id)
        then -- it goes on in this one's place
            successor_id := null;
            if wanted.recurrence = p_before.recurrence and wanted.recurrence_anchor = p_before.recurrence_anchor then
                wanted := tasks.without_series(wanted);
            end if;
        end if;
    end if;
end
$$;
