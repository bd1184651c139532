-- task_search.sql: a list that is filtered, sorted, cut into pages or trimmed, and the user's counter, in one row.
-- tasks is null when the counter is among those of $2; no task is read then.
-- is_followed says whether a page comes after this one; next_rank, next_name and next_id are the key of this one's last.
-- $1 text: the user
-- $2 text[]: what If-None-Match lists, versions or *; null when it was not sent
-- $3 text[]: any of these statuses, or null
-- $4 text[]: any of these priorities, or null
-- $5 boolean: is_completed, or null
-- $6 text[]: words that all occur in title or description, each at a word's beginning; or null
-- $7 timestamptz: created after, or null
-- $8 timestamptz: created before, or null
-- $9 timestamptz: updated after, or null
-- $10 timestamptz: updated before, or null
-- $11 timestamptz: completed after, or null
-- $12 timestamptz: completed before, or null
-- $13 boolean: whether the trash is listed instead of the live tasks
-- $14 text: what to sort by: created_at, updated_at, completed_at, title, priority or status
-- $15 boolean: whether to sort downwards
-- $16 bigint: next_rank of the page before, or null
-- $17 text: next_name of the page before, or null
-- $18 uuid: next_id of the page before; null for the first page
-- $19 integer: how many tasks at most; null for all
-- $20 text[]: the fields to answer with; null for all
-- $21 boolean: whether to count the tasks that match, on whatever page
with known as materialized (
    select version, coalesce('*' = any($2) or version::text = any($2), false) as is_current
    from (select coalesce((select version from account where user_id = $1), 0) as version) counter
), word as materialized (
    -- Folded like the text below. A space goes in after all that is neither letter nor digit, so that a word's beginning
    -- is what follows a space; what does not begin with a letter or digit may stand anywhere.
    select
        array_agg(folded) as folded,
        array_agg(' ' || regexp_replace(folded, '([^[:alnum:]]+)(?=.)', '\1 ', 'g')) filter (where folded ~ '^[[:alnum:]]')
            as spaced
    from (
        select distinct upper(lower(regexp_replace(normalize(word, nfd), '[\u0300-\u036f]+', '', 'g'))) as folded
        from unnest($6::text[]) word
    ) one
    where folded <> ''
), matching as materialized (
    -- rank and name order the tasks: one of them does, the other is the same for all
    select
        task,
        id,
        case $14
            when 'title' then 0
            when 'priority' then
                array_position(array['low', 'medium', 'high'], priority) * case when $15 then -1 else 1 end
            when 'status' then
                array_position(array['pending', 'in_progress', 'completed'], status) * case when $15 then -1 else 1 end
            else coalesce(
                (extract(epoch from case $14
                    when 'created_at' then created_at
                    when 'updated_at' then updated_at
                    else completed_at
                end) * case when $15 then -1000000 else 1000000 end)::bigint,
                9223372036854775807 -- nulls last
            )
        end as rank,
        case when $14 = 'title' then lower(title) else '' end as name
    from task
    where user_id = $1
        and not (select is_current from known)
        and case when $13 then deleted_at is not null else deleted_at is null end
        and ($3::text[] is null or status = any($3))
        and ($4::text[] is null or priority = any($4))
        and ($5::boolean is null or is_completed = $5)
        and ($7::timestamptz is null or created_at > $7)
        and ($8::timestamptz is null or created_at < $8)
        and ($9::timestamptz is null or updated_at > $9)
        and ($10::timestamptz is null or updated_at < $10)
        and ($11::timestamptz is null or completed_at > $11)
        and ($12::timestamptz is null or completed_at < $12)
        and ($6::text[] is null or (
            select not exists (
                select from unnest((select word.folded from word)) needle where strpos(text.folded, needle) = 0
            ) and not exists (
                select
                from (
                    select ' ' || regexp_replace(text.folded, '[^[:alnum:]]+', '\& ', 'g') as spaced offset 0
                ) haystack, unnest((select word.spaced from word)) needle
                where strpos(haystack.spaced, needle) = 0
            )
            from (
                select case
                    when octet_length(plain) = char_length(plain) then upper(plain) -- ASCII: the same, only sooner
                    else upper(lower(regexp_replace(normalize(plain, nfd), '[\u0300-\u036f]+', '', 'g')))
                end as folded
                from (select concat(title, E'\n', description) as plain offset 0) original
                offset 0
            ) text
        ))
), page as (
    select
        *,
        row_number() over (
            order by rank, case when not $15 then name end, case when $15 then name end desc, id
        ) as number
    from matching
    where $18::uuid is null
        or rank > $16
        or rank = $16 and (case when $15 then name < $17 else name > $17 end or name = $17 and id > $18)
    order by rank, case when not $15 then name end, case when $15 then name end desc, id
    limit $19::integer + 1
), answer as (
    select
        coalesce(
            json_agg(task) filter (where $20::text[] is null and ($19 is null or number <= $19)),
            json_agg(trimmed::json) filter (where $20 is not null and ($19 is null or number <= $19)),
            '[]'
        ) as tasks,
        coalesce(count(*) > $19, false) as is_followed,
        max(rank) filter (where number = $19) as next_rank,
        max(name) filter (where number = $19) as next_name,
        (array_agg(id) filter (where number = $19))[1] as next_id
    from page, lateral (
        -- each field by its name: a quarter of the time that taking row_to_json's apart would need
        select '{' || concat_ws(
                ',',
                case when 'id' = any($20) then '"id":' || to_json((task).id) end,
                case when 'user_id' = any($20) then '"user_id":' || to_json((task).user_id) end,
                case when 'title' = any($20) then '"title":' || to_json((task).title) end,
                case when 'description' = any($20) then '"description":' || coalesce(to_json((task).description)::text, 'null') end,
                case when 'status' = any($20) then '"status":' || to_json((task).status) end,
                case when 'priority' = any($20) then '"priority":' || to_json((task).priority) end,
                case when 'is_completed' = any($20) then '"is_completed":' || to_json((task).is_completed) end,
                case when 'completed_at' = any($20) then '"completed_at":' || coalesce(to_json((task).completed_at)::text, 'null') end,
                case when 'created_at' = any($20) then '"created_at":' || to_json((task).created_at) end,
                case when 'updated_at' = any($20) then '"updated_at":' || to_json((task).updated_at) end,
                case when 'deleted_at' = any($20) then '"deleted_at":' || coalesce(to_json((task).deleted_at)::text, 'null') end,
                case when 'version' = any($20) then '"version":' || to_json((task).version) end
            ) || '}' as trimmed
    ) own
)
select
    known.version,
    case when not known.is_current then answer.tasks end as tasks,
    answer.is_followed,
    answer.next_rank,
    answer.next_name,
    answer.next_id,
    case when $21 then (select count(*) from matching) end as total
from known, answer
