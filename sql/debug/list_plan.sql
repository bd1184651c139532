-- list_plan.sql: how PostgreSQL runs the default list for a user: by an index, once the table is not tiny.
--   \set user demo
--   \i sql/debug/list_plan.sql
\if :{?user}
\else
    \set user demo
\endif
\set statement `cat sql/tasks/task_list.sql`
prepare list_plan(text, text[]) as :statement;
explain (analyze, buffers) execute list_plan(:'user', null);
deallocate list_plan;
