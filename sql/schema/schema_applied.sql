-- schema_applied.sql: the names of the migrations that are applied, the hashes of the functions that were installed,
-- and the rights that the service's user lacks.
select
    array(select migration_id::text from tasks._yoyo_migration) as migrations,
    array(select hash from tasks.installed_functions) as functions,
    array(
        select wanted || ' on ' || oid::regclass
        from pg_class, unnest(array['select', 'insert', 'update', 'delete']) wanted
        where relnamespace = 'tasks'::regnamespace
            and relname in ('account', 'change', 'idempotency', 'number_floor', 'task')
            and not has_table_privilege(oid, wanted)
        union all
        -- by name: one with another signature may be for another version of the service
        select 'execute on function tasks.' || proname
        from pg_proc
        where pronamespace = 'tasks'::regnamespace
        group by proname
        having not bool_or(has_function_privilege(oid, 'execute'))
    ) as missing_rights
