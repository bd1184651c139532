-- change_history.sql: what the user's changes did, the newest first, as one JSON array: one entry a task and number.
-- A page ends between two numbers, so it may have more than $4 entries.
-- $1 text: the user
-- $2 uuid: the task; null for all
-- $3 bigint: only numbers below this; null for all
-- $4 bigint: how many entries at most, but for the rest of a change
select coalesce(json_agg(entry order by version desc, task_id), '[]') as entries
from (
    select
        version,
        at,
        operation,
        task_id,
        before,
        -- of a task that was created, the row as it was answered
        case when before is null then (
            jsonb_strip_nulls(
                after::jsonb - '{id,user_id,is_completed,created_at,updated_at,version}'::text[]
            )
        )::json else after end as after
    from tasks.change
    where user_id = $1
        and ($2::uuid is null or task_id = $2)
        and version < coalesce($3, 9223372036854775807)
        and operation not in ('erase', 'erased')
        and at > clock_timestamp() - interval '30 days'
    order by version desc
    fetch first ($4) rows with ties
) entry
