-- sizes.sql: how large the tables and their indexes are, how they are used, and when they were last cleaned.
--   \i sql/debug/sizes.sql
select
    relname as table,
    n_live_tup as rows,
    n_dead_tup as dead_rows,
    pg_size_pretty(pg_table_size(relid)) as table_size,
    pg_size_pretty(pg_indexes_size(relid)) as index_size,
    round(100.0 * n_tup_hot_upd / nullif(n_tup_upd, 0)) as hot_update_percent,
    greatest(last_vacuum, last_autovacuum) as last_vacuum,
    greatest(last_analyze, last_autoanalyze) as last_analyze
from pg_stat_user_tables
where schemaname = 'tasks'
order by pg_total_relation_size(relid) desc;
select indexrelname as index, idx_scan as scans, pg_size_pretty(pg_relation_size(indexrelid)) as size
from pg_stat_user_indexes
where schemaname = 'tasks'
order by pg_relation_size(indexrelid) desc;
