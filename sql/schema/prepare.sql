-- prepare.sql: makes the schema `tasks`, and moves yoyo's own tables into it: what `migrate` runs before anything else.
-- Those of an earlier version are in the first schema of the search path, perhaps with rows of somebody else's migrations,
-- which stay there.
do $$
declare
    earlier regnamespace := (select relnamespace from pg_class where oid = to_regclass('_yoyo_migration'));
    ours text[];
    name text;
begin
    if to_regnamespace('tasks') is null then
        create schema tasks;
    end if;
    if earlier is null or to_regclass('tasks._yoyo_migration') is not null then
        return;
    end if;
    select array_agg(migration_hash) into ours
    from _yoyo_migration
    where migration_id in ('0001-tasks', '0002-writes', '0003-batch', '0004-search', '0005-numbers');
    if ours is null then
        return;
    end if;
    foreach name in array array['_yoyo_migration', '_yoyo_log'] loop
        execute format('create table tasks.%1$s (like %2$s.%1$s including all)', name, earlier);
        execute format(
            'with moved as (delete from %2$s.%1$s where migration_hash = any ($1) returning *)'
                ' insert into tasks.%1$s table moved',
            name, earlier
        ) using ours;
    end loop;
    execute format('create table tasks._yoyo_version as table %s._yoyo_version', earlier);
    if not exists (select from _yoyo_migration) then
        foreach name in array array['_yoyo_migration', '_yoyo_log', '_yoyo_version', 'yoyo_lock'] loop
            execute format('drop table if exists %s.%s', earlier, name);
        end loop;
    end if;
end
$$
