-- rename_tag: renames a tag in all of the user's tasks, those in the trash too, as one change; returns its number, null when
-- nothing has changed, and how many tasks it has changed.
-- In each task the new tag takes the place of the old one; where both were, it is there once, in the first of the two places.
-- p_lock_timeout: for each lock in this transaction, like 500ms
-- p_from: the tag, and all that are alike
-- p_to: the new one; null to remove the old one
create or replace function tasks.rename_tag(
    p_user text, p_lock_timeout text, p_from text, p_to text, out version bigint, out tasks bigint
)
language plpgsql
-- A plan that is left from when the table was small would compare each of ten thousand tasks with each.
set enable_nestloop = off
as $$
declare
    -- in all the spellings that the user's tasks have
    old text[];
    alike text[]; -- old and new ones
    moment timestamptz;
begin
    perform tasks.lock_account(p_user, p_lock_timeout);
    select
        array_agg(s.tag) filter (where s.key = tasks.tag_key(p_from) and s.tag is distinct from p_to),
        array_agg(s.tag)
    into old, alike
    from (
        select d.tag, tasks.tag_key(d.tag) as key
        from (select distinct unnest(t.tags) as tag from tasks.task t where t.user_id = p_user) d
    ) s
    where s.key in (tasks.tag_key(p_from), tasks.tag_key(p_to));
    tasks := 0;
    if old is null then
        return;
    end if;

    version := tasks.next_version(p_user);
    moment := clock_timestamp();
    with renamed as (
        update tasks.task t
        set tags = n.tags, updated_at = n.updated_at, version = rename_tag.version
        from (
            select o.id, greatest(moment, o.updated_at + interval '1 microsecond') as updated_at, o.tags as before, array(
                select case when g.tag = any (alike) then p_to else g.tag end as tag
                from unnest(o.tags) with ordinality as g (tag, place)
                where p_to is not null or g.tag <> all (alike)
                group by 1
                order by min(g.place)
            ) as tags
            from tasks.task o
            where o.user_id = p_user and o.tags && old
        ) n
        where t.user_id = p_user and t.id = n.id
        returning t.id, t.updated_at, n.before, t.tags
    )
    insert into tasks.change (user_id, version, task_id, at, operation, before, after)
    select
        p_user, rename_tag.version, r.id, r.updated_at, 'rename_tag',
        json_build_object('tags', r.before), json_build_object('tags', r.tags)
    from renamed r;
    get diagnostics tasks = row_count;
end
$$;
