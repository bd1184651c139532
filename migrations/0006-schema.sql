-- All that is ours moves into the schema `tasks`: Better Auth has a table `account` too, and an application its own `task`.
-- `migrate` puts `tasks` first in the search path, so a new database has it all there already. Nothing is copied.

do $$
begin
    if to_regclass('tasks.task') is null then
        alter table account set schema tasks;
        alter table task set schema tasks;
        alter table idempotency set schema tasks;
        alter function search_folded set schema tasks;
    end if;
end
$$;

-- The functions that write are not made by migrations: `migrate` installs those of sql/functions/ after them.
create table tasks.installed_functions (
    hash text primary key,
    installed_at timestamptz not null default clock_timestamp()
);

comment on table tasks.installed_functions is 'The hash of each set of functions that migrate has installed; the latest is in force.';
