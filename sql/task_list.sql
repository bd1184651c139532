-- task_list.sql: the user's live tasks, newest first, as one JSON array.
-- $1 text: the user
select coalesce((
    select json_agg(t)
    from (
        select *
        from task
        where user_id = $1 and deleted_at is null
        order by created_at desc, id
    ) t
), '[]') as tasks
