-- difference: the fields of p_row that differ from those of p_other, as JSON; without what follows from other fields.
-- p_row: a task as it is before a change, or after it
-- p_other: the other of the two; null for all fields that have a value
create or replace function tasks.difference(p_row tasks.task, p_other tasks.task) returns json
language sql stable as $$
    select ('{' || concat_ws(
        ',',
        case when p_row.title is distinct from p_other.title then '"title":' || to_json(p_row.title) end,
        case when p_row.description is distinct from p_other.description
            then '"description":' || coalesce(to_json(p_row.description)::text, 'null') end,
        case when p_row.status is distinct from p_other.status then '"status":' || to_json(p_row.status) end,
        case when p_row.priority is distinct from p_other.priority then '"priority":' || to_json(p_row.priority) end,
        case when p_row.completed_at is distinct from p_other.completed_at
            then '"completed_at":' || coalesce(to_json(p_row.completed_at)::text, 'null') end,
        case when p_row.deleted_at is distinct from p_other.deleted_at
            then '"deleted_at":' || coalesce(to_json(p_row.deleted_at)::text, 'null') end
    ) || '}')::json
$$;
