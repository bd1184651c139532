-- write.sql: how to write as the service does, by the functions of sql/functions/. Everything is rolled back here.
--   \set user demo
--   \i sql/debug/write.sql
\if :{?user}
\else
    \set user demo
\endif
select gen_random_uuid() as id \gset
begin;
-- The lock timeout comes second, always. None may be left out: a later version's function may have one more.
select outcome, version, task from tasks.insert_task(:'user', '1s', :'id', '{"title": "Buy milk"}', null, null, null, null, null) \gset
\echo :outcome :version :task
-- A patch: what is absent stays, null clears the description.
select * from tasks.change_task(
    :'user', '1s', 'update', :'id', '{"priority": "high", "description": "Two litres"}', null, null, null
);
-- The versions that If-Match lists: the task has another one by now.
select * from tasks.change_task(:'user', '1s', 'complete', :'id', null, array[:'version'], null, null);
select * from tasks.change_task(:'user', '1s', 'delete', :'id', null, null, null, null);
-- Many changes as one: atomic, and no dry run.
select version, unnest(outcomes) as outcome, unnest(tasks) as task
from tasks.run_batch(
    :'user',
    '1s',
    jsonb_build_array(
        jsonb_build_object('op', 'restore', 'id', :'id'),
        jsonb_build_object('op', 'create', 'id', gen_random_uuid(), 'task', jsonb_build_object('title', 'Buy bread'))
    ),
    null,
    true,
    false
);
rollback;
