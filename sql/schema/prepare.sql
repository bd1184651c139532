-- prepare.sql: makes the schema `tasks`, and moves into it what an earlier version has left in another one: the tables,
-- the function, and what yoyo has noted of our migrations. `migrate` runs it first, as one transaction. No row of a task
-- is copied, and what yoyo has noted for another application stays where it is.
do $$
declare
    is_first boolean := not exists (
        select from pg_class where relnamespace = to_regnamespace('tasks') and relname = '_yoyo_migration'
    );
    earlier regnamespace;
    has_tasks boolean;
    ours text[];
    name text;
begin
    if to_regnamespace('tasks') is null then
        if not has_database_privilege(current_database(), 'create') then
            raise insufficient_privilege using message = format(
                'the user %1$I may not create the schema tasks: grant create on database %2$I to %1$I,'
                    ' or create schema tasks authorization %1$I', current_user, current_database()
            );
        end if;
        create schema tasks;
    elsif not has_schema_privilege('tasks', 'usage') or is_first and not has_schema_privilege('tasks', 'create') then
        raise insufficient_privilege using message = format(
            'the user %1$I may not create tables in the schema tasks: grant usage, create on schema tasks to %1$I',
            current_user
        );
    end if;

    -- where an earlier version found its tables; by the search path, as somebody else may have some of the same names
    select c.relnamespace into earlier
    from pg_class c join pg_constraint own on own.connamespace = c.relnamespace
    where c.oid = to_regclass('_yoyo_migration') and own.conname = 'task_completed_at_matches_status';
    if earlier is null then
        return;
    end if;
    if not is_first then
        execute format('select exists (select from %s.task)', earlier) into has_tasks;
        if has_tasks then
            raise '%.task has tasks of an earlier version, and there is a tasks.task as well: rename one of them', earlier;
        end if;
        return;
    end if;

    foreach name in array array['account', 'task', 'idempotency'] loop
        execute format('alter table if exists %s.%s set schema tasks', earlier, name);
    end loop;
    if to_regproc(format('%s.search_folded', earlier)) is not null then
        execute format('alter function %s.search_folded set schema tasks', earlier);
    end if;

    execute format('select array_agg(migration_hash) from %s._yoyo_migration where migration_id = any ($1)', earlier)
    into ours
    using array['0001-tasks', '0002-writes', '0003-batch', '0004-search', '0005-numbers'];
    foreach name in array array['_yoyo_migration', '_yoyo_log'] loop
        execute format('create table tasks.%2$s (like %1$s.%2$s including all)', earlier, name);
        execute format(
            'with moved as (delete from %1$s.%2$s where migration_hash = any ($1) returning *)'
                ' insert into tasks.%2$s table moved',
            earlier, name
        ) using ours;
    end loop;
    execute format('create table tasks._yoyo_version as table %s._yoyo_version', earlier);
    execute format('select migration_id from %s._yoyo_migration limit 1', earlier) into name;
    if name is null then
        execute format(
            'drop table if exists %1$s._yoyo_migration, %1$s._yoyo_log, %1$s._yoyo_version, %1$s.yoyo_lock', earlier
        );
    end if;
end
$$
