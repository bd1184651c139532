-- change_counters.sql: the counters of users that have moved, as two arrays of the same length.
-- Run once a second, for all users that are watched; beside the purge nothing else is about several users.
-- The users are named a second time for Citus, which then asks their nodes only.
-- $1 text[]: the users
-- $2 bigint[]: their counters, as far as they are known
select
    coalesce(array_agg(user_id), array[]::text[]) as users,
    coalesce(array_agg(version), array[]::bigint[]) as versions
from unnest($1::text[], $2::bigint[]) as watched (id, known)
join tasks.account on user_id = id and version > known
where user_id = any($1)
