alter table account
    alter column version drop default,
    drop constraint account_version_exact,
    add constraint account_version_not_negative check (version >= 0);
