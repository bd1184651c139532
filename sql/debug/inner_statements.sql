-- inner_statements.sql: what the statements inside the functions cost, the dearest first.
-- Elsewhere PostgreSQL shows the call only. The extension pg_stat_statements counts them, with pg_stat_statements.track = all.
--   \i sql/debug/inner_statements.sql
select
    exists (select from pg_extension where extname = 'pg_stat_statements')
    and coalesce(current_setting('pg_stat_statements.track', true), '') = 'all' as is_counted
\gset
\if :is_counted
    select
        calls,
        round(1000 * mean_exec_time::numeric, 1) as mean_microseconds,
        round(total_exec_time::numeric, 1) as total_milliseconds,
        rows,
        regexp_replace(query, '\s+', ' ', 'g') as statement
    from pg_stat_statements
    where not toplevel
        and dbid = (select oid from pg_database where datname = current_database())
        and query ~ '\mtasks\.'
    order by total_exec_time desc
    limit 30;
\else
    \echo 'Nothing is counted yet. Set in postgresql.conf:'
    \echo '    shared_preload_libraries = ''pg_stat_statements'''
    \echo '    pg_stat_statements.track = all'
    \echo 'Then restart PostgreSQL, and run here: create extension pg_stat_statements;'
\endif
