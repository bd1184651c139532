-- change_oldest.sql: the users behind $1, in their order, who have history to be purged; and the last user that was looked at.
-- last is null when there is none behind $1.
-- $1 text: the user to begin behind; empty for the first
-- $2 timestamptz: history from before this
-- $3 timestamptz: what was told of erased tasks from before this
-- $4 bigint: how many users to look at
select
    max(user_id) as last,
    coalesce(array_agg(user_id) filter (where has_old), array[]::text[]) as users
from (
    select
        user_id,
        -- of most users nothing else is read
        coalesce(
            (select c.at from tasks.change c where c.user_id = a.user_id order by c.version limit 1) < $2, false
        ) and exists (
            select
            from tasks.change c
            where c.user_id = a.user_id and c.at < case when c.operation = 'erase' then $3 else $2 end
        ) as has_old
    from tasks.account a
    where user_id > $1
    order by user_id
    limit $4
) account
