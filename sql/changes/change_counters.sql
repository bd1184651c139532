-- change_counters.sql: the counters of users that are others than known, as two arrays of the same length; 0 without an account.
-- Run once a second, for all users that are watched; beside the purge nothing else is about several users.
-- The users are named a second time for Citus, which then asks their nodes only.
-- $1 text[]: the users
-- $2 bigint[]: their counters, as far as they are known
select
    coalesce(array_agg(id), array[]::text[]) as users,
    coalesce(array_agg(coalesce(version, 0)), array[]::bigint[]) as versions
from unnest($1::text[], $2::bigint[]) as watched (id, known)
left join (select user_id, version from tasks.account where user_id = any ($1)) account on user_id = id
where coalesce(version, 0) <> known
