-- account_page.sql: the users behind $1 who have an account, in their order, as an array; empty behind the last.
-- $1 text: the user to begin behind; empty for the first
-- $2 bigint: how many at most
select coalesce(array_agg(user_id order by user_id), array[]::text[]) as users
from (select user_id from tasks.account where user_id > $1 order by user_id limit $2) page
