-- is_untouched: returns whether the user has left a successor as it was made: whether all that has happened to it came with
-- changes to the task before it. True when there is none; false when it is older than its history.
-- p_successor: its id
-- p_before: the id of the task before it
create or replace function tasks.is_untouched(p_user text, p_successor uuid, p_before uuid) returns boolean
language plpgsql as $$
begin
    return not exists (
        select
        from tasks.task t
        where t.user_id = p_user
            and t.id = p_successor
            and t.updated_at > t.created_at
            and (
                t.created_at < clock_timestamp() - interval '30 days'
                or exists (
                    select
                    from tasks.change c
                    where c.user_id = p_user
                        and c.task_id = p_successor
                        and not exists (
                            select
                            from tasks.change b
                            where b.user_id = p_user and b.version = c.version and b.task_id = p_before
                        )
                )
            )
    );
end
$$;
