-- user_tasks.sql: a user's counter and tasks, the trash included, the latest change first.
--   \set user demo
--   \i sql/debug/user_tasks.sql
\if :{?user}
\else
    \set user demo
\endif
select user_id, version from tasks.account where user_id = :'user';
select version, id, title, status, priority, created_at, updated_at, completed_at, deleted_at
from tasks.task
where user_id = :'user'
order by version desc;
