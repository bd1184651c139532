-- list_plan.sql: how PostgreSQL runs the default list for a user: an index scan on task_newest_first or task_pkey.
--   \set user demo
--   \i sql/debug/list_plan.sql
\if :{?user}
\else
    \set user demo
\endif
\set statement `cat sql/task_list.sql`
prepare list_plan(text) as :statement;
explain (analyze, buffers) execute list_plan(:'user');
deallocate list_plan;
