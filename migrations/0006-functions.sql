-- The functions that write are not made by migrations: after them, `migrate` installs those of sql/functions/.
-- A migration that drops one of an earlier version deletes that version's hash as well, so that its /readyz says so.

create table installed_functions (
    hash text primary key,
    installed_at timestamptz not null default clock_timestamp()
);

comment on table installed_functions is 'The hash of each set of functions that migrate has installed; the latest is in force.';
