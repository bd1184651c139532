-- task_search.sql: a list that is filtered, sorted, cut into pages or trimmed, and the user's counter, in one row.
-- tasks is null when the counter is among those of $2; no task is read then.
-- is_followed says whether a page comes after this one; next_rank, next_name and next_id are the key of this one's last.
-- $1 text: the user
-- $2 text[]: what If-None-Match lists, versions or *; null when it was not sent
-- $3 text[]: any of these statuses, or null
-- $4 text[]: any of these priorities, or null
-- $5 boolean: is_completed, or null
-- $6 text[]: words that all occur in title or description, each at a word's beginning where words have spaces; or null
-- $7 timestamptz: created after, or null
-- $8 timestamptz: created before, or null
-- $9 timestamptz: updated after, or null
-- $10 timestamptz: updated before, or null
-- $11 timestamptz: completed after, or null
-- $12 timestamptz: completed before, or null
-- $13 boolean: whether the trash is listed instead of the live tasks
-- $14 text: what to sort by: created_at, updated_at, completed_at, due, title, priority or status
-- $15 boolean: whether to sort downwards
-- $16 bigint: next_rank of the page before, or null
-- $17 text: next_name of the page before, or null
-- $18 uuid: next_id of the page before; null for the first page
-- $19 integer: how many tasks at most; null for all
-- $20 text[]: the fields to answer with; null for all
-- $21 boolean: whether to count the tasks that match, on whatever page
-- $22 text: due after this date, or null; as text, since asyncpg takes the first and the last date for infinite ones
-- $23 text: due before this date, or null
-- $24 text: overdue, today, tomorrow, week or none: what is due then; or null
-- $25 timestamptz: the moment by which $24 is told; null where none is needed
-- $26 text: the time zone in which $24 is told, likewise
-- $27 text[]: any of these tags, or null
-- $28 text[]: all of these tags, or null
with known as materialized (
    select version, coalesce('*' = any($2) or version::text = any($2), false) as is_current
    from (
        select coalesce((select version from tasks.account where user_id = $1), 0) as version offset 0 -- read once, not twice
    ) counter
), letters as (
    -- Of the scripts that put no space between words: Thai, Lao, Burmese, Khmer and their neighbours, Chinese, Japanese.
    -- Of the others, what belongs to a word and is no letter or digit to every PostgreSQL: vowel signs, and more digits.
    select
        '[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u2e80-\u2fdf\u3005-\u3007'
            '\u3021-\u303c\u3041-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\ua4cf\ua9e0-\ua9ff\uaa60-\uaadf'
            '\uf900-\ufaff\U00016fe0-\U0001b2ff\U00020000-\U0003ffff]' as spaceless,
        '[^[:alnum:]\u0660-\u0669\u06f0-\u06f9\u07a6-\u07f3\u0816-\u082d\u0859-\u085b\u0900-\u0963\u0966-\u096f'
            '\u0981-\u09f1\u09fc-\u0aef\u0afa-\u0bef\u0c00-\u0df3\u0f18\u0f19\u0f20-\u0f33\u0f35\u0f37\u0f39'
            '\u0f3e-\u0f84\u0f86-\u0fbc\u135d-\u135f\u1712-\u1734\u1752-\u1773\u1810-\u1b59\u1b6b-\u1b73'
            '\u1b80-\u1bf3\u1c24-\u1c37\u1c40-\u1c59\u2cef-\u2cf1\u2d7f-\u2dff\ua620-\ua672\ua674-\ua67d'
            '\ua69e-\ua6f1\ua802-\ua82c\ua880-\ua8c5\ua8d0-\ua8d9\ua8ff-\ua92d\ua947-\ua953\ua980-\ua9c0'
            '\ua9d0-\ua9d9\uaa29-\uaa59\uaaeb-\uaaef\uaaf5\uaaf6\uabe3-\uabf9\U00010a00-\U00011fff'
            '\U0001e000-\U0001e95f]' as separator
), word as materialized (
    -- Folded like the text below. A word that begins like one is to stand at the beginning of a word: behind a separator,
    -- or behind a script without spaces. Where a word could begin, a space goes in, so that its beginning is a space.
    -- A word in a script without spaces, or with a separator in front, may stand anywhere. Only the beginnings with a
    -- letter that one of the words begins with get their space: there are fewer.
    select
        array_agg(folded order by octet_length(folded) desc) filter (where not is_kana) as folded,
        array_agg(folded order by octet_length(folded) desc) filter (where is_kana) as kana,
        array_agg(' ' || regexp_replace(folded, boundary, '\& ', 'g')) filter (where is_bound) as spaced,
        max(boundary) as boundary
    from (
        select
            *,
            '(?:' || separator || '|' || spaceless || ')(?=['
                || string_agg(left(folded, 1), '') filter (where is_bound) over () || '])' as boundary
        from (
            select
                *,
                folded ~ '[\u3041-\u3096\u30a1-\u30ff]$' as is_kana,
                folded !~ spaceless and folded !~ ('^' || separator) as is_bound
            from letters, (select distinct tasks.search_folded(word) as folded from unnest($6::text[]) word) one
            where folded <> ''
        ) kind
    ) bounded
), days as materialized (
    -- from when to when a task is due that $24 asks for
    select
        today,
        today + case $24 when 'tomorrow' then 1 else 0 end as first,
        today + case $24 when 'tomorrow' then 1 when 'week' then 6 else 0 end as last
    from (select ($25::timestamptz at time zone $26)::date as today) one
), spelled as materialized (
    -- the tags that are asked for, in all spellings that the user's tasks have: these can be compared as they are
    select key, array_agg(tag) as tags
    from (
        select tag, tasks.tag_key(tag) as key
        from (
            select distinct unnest(tags) as tag
            from tasks.task
            where user_id = $1 and coalesce($27::text[], $28::text[]) is not null and not (select is_current from known)
        ) mine
    ) keyed
    where key in (select tasks.tag_key(tag) from unnest($27 || $28) tag)
    group by key
), matching as materialized (
    -- rank and name order the tasks: one of them does, the other is the same for all
    select
        task::tasks.task as task, -- as a row of a query: on Citus that of the table has another type
        id,
        case $14
            when 'title' then 0
            when 'priority' then
                array_position(array['low', 'medium', 'high'], priority) * case when $15 then -1 else 1 end
            when 'status' then
                array_position(array['pending', 'in_progress', 'completed'], status) * case when $15 then -1 else 1 end
            when 'due' then coalesce(
                (due_date - date '2000-01-01') * case when $15 then -100000 else 100000 end::bigint
                    + coalesce(abs(extract(epoch from due_time) - case when $15 then 86400 else 0 end), 99999)::bigint,
                9223372036854775807
            )
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
    from (select * from tasks.task where user_id = $1) task
    where not (select is_current from known)
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
        and ($22::text is null or due_date > $22::text::date)
        and ($23::text is null or due_date < $23::text::date)
        and case
            when $24::text is null then true
            when $24 = 'none' then due_date is null
            when $24 = 'overdue' then
                not is_completed
                -- two days off, it is the same in all time zones
                and due_date <= (select today + 2 from days)
                and case
                    when due_time is null or due_date < (select today - 2 from days) then due_date < (select today from days)
                    else tasks.moment(due_date, due_time, coalesce(due_time_zone, $26)) < $25
                end
            else
                due_date between (select first - 2 from days) and (select last + 2 from days)
                and case
                    when due_time_zone is null then due_date
                    else (tasks.moment(due_date, due_time, due_time_zone) at time zone $26)::date
                end between (select first from days) and (select last from days)
        end
        and ($27::text[] is null or tags && array(
            select unnest(s.tags) from spelled s where s.key in (select tasks.tag_key(tag) from unnest($27) tag)
        ))
        and ($28::text[] is null or not exists (
            select
            from (select distinct tasks.tag_key(tag) as key from unnest($28) tag) wanted
            left join spelled s using (key)
            where s.tags is null or not task.tags && s.tags
        ))
        and ($6::text[] is null or (
            -- split_part, and not strpos, which counts the characters up to what it finds; the longest, as the rarest, first
            select not exists (
                select from unnest((select word.folded from word)) needle where split_part(text, needle, 1) = text
            ) and not exists (
                -- a syllable with the mark of a voiced one is another syllable
                select
                from unnest((select word.kana from word)) needle
                where strpos(replace(replace(text, needle || U&'\3099', ' '), needle || U&'\309A', ' '), needle) = 0
            ) and not exists (
                select
                from (
                    select ' ' || regexp_replace(text, (select word.boundary from word), '\& ', 'g') as spaced offset 0
                ) haystack, unnest((select word.spaced from word)) needle
                where split_part(spaced, needle, 1) = spaced
            )
            from (select tasks.search_folded(concat(title, E'\n', description)) as text offset 0) folded
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
        concat(
            '[',
            string_agg(
                case when $20::text[] is null then tasks.task_json(task) else trimmed end, ','
            ) filter (where $19 is null or number <= $19),
            ']'
        )::varchar as tasks, -- as json it would be parsed
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
                case when 'version' = any($20) then '"version":' || to_json((task).version) end,
                case when 'due_date' = any($20) then '"due_date":' || coalesce(to_json((task).due_date)::text, 'null') end,
                case when 'due_time' = any($20) then '"due_time":' || coalesce(to_json((task).due_time)::text, 'null') end,
                case when 'due_time_zone' = any($20) then
                    '"due_time_zone":' || coalesce(to_json((task).due_time_zone)::text, 'null') end,
                case when 'recurrence' = any($20) then
                    '"recurrence":' || coalesce(to_json((task).recurrence)::text, 'null') end,
                case when 'recurrence_anchor' = any($20) then
                    '"recurrence_anchor":' || to_json((task).recurrence_anchor) end,
                case when 'recurrence_start' = any($20) then
                    '"recurrence_start":' || coalesce(to_json((task).recurrence_start)::text, 'null') end,
                case when 'series_id' = any($20) then '"series_id":' || coalesce(to_json((task).series_id)::text, 'null') end,
                case when 'occurrence' = any($20) then '"occurrence":' || coalesce(to_json((task).occurrence)::text, 'null') end,
                case when 'tags' = any($20) then '"tags":' || to_json((task).tags) end
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
