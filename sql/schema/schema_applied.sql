-- schema_applied.sql: the names of the migrations that are applied, and the hashes of the functions that were installed.
select
    array(select migration_id::text from tasks._yoyo_migration) as migrations,
    array(select hash from tasks.installed_functions) as functions
