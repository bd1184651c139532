-- run_batch: makes many changes as one, in their order, each of which sees the earlier ones; they all have one number.
-- Returns that number, null when nothing is kept, and what became of each operation, with the task as JSON after it.
-- Nothing is kept of a dry run, nor when it is atomic and one of them fails, nor when nothing has changed.
-- outcomes: as those of insert_task and change_task; after one that is `unplanned`, nothing is kept either
-- successors: by the number of the operation, where there is one
-- p_lock_timeout: for each lock in this transaction, like 500ms
-- p_operations: an array of {"op", "id", "if_version", "task"}; op is create, update, complete, delete or restore
-- p_plans: an array with the plan of each operation, as change_task takes it, or null
-- p_atomic: whether one failure takes everything back
-- p_dry_run: whether everything is taken back
create or replace function tasks.run_batch(
    p_user text, p_lock_timeout text, p_operations jsonb, p_plans jsonb, p_atomic boolean, p_dry_run boolean,
    out version bigint, out outcomes text[], out tasks json[], out successors json[]
)
language plpgsql as $$
declare
    number bigint;
    operation record;
    result record;
begin
    outcomes := array[]::text[];
    tasks := array[]::json[];
    successors := array[]::json[];
    begin
        p_lock_timeout := set_config('lock_timeout', p_lock_timeout, true);
        number := tasks.next_version(p_user);
        for operation in
            select o.* from jsonb_to_recordset(p_operations) as o (op text, id uuid, if_version text, task jsonb)
        loop
            if operation.op = 'create' then
                result := tasks.insert_task(
                    p_user, p_lock_timeout, operation.id, operation.task, null, null, number,
                    p_plans -> cardinality(outcomes), null
                );
            else
                result := tasks.change_task(
                    p_user, p_lock_timeout, operation.op, operation.id, operation.task,
                    case when operation.if_version is not null then array[operation.if_version] end, number,
                    p_plans -> cardinality(outcomes)
                );
            end if;
            outcomes := outcomes || result.outcome;
            tasks := tasks || result.task;
            if result.successor is not null then
                successors := successors
                    || array_fill(null::json, array[cardinality(outcomes) - cardinality(successors) - 1])
                    || result.successor;
            end if;
        end loop;
        if p_dry_run
            or 'unplanned' = any (outcomes)
            or (p_atomic and not outcomes <@ array['created', 'changed', 'unchanged'])
            or not outcomes && array['created', 'changed']
        then
            raise sqlstate 'TASKS'; -- takes it all back; variables keep what they have
        end if;
        version := number;
    exception
        when sqlstate 'TASKS' then
            null;
    end;
end
$$;
