-- A user's numbers begin at the milliseconds since 1970, so that none is given again, whatever was wiped or restored.
-- The counters that exist are lifted to that, once; tasks keep their versions. Writes wait until this is committed.

update account set version = greatest(version, floor(extract(epoch from clock_timestamp()) * 1000)::bigint);

alter table account
    alter column version set default floor(extract(epoch from clock_timestamp()) * 1000)::bigint,
    drop constraint account_version_not_negative,
    -- JavaScript's numbers are exact below 2^53
    add constraint account_version_exact check (version between 1 and 9007199254740991);
