-- zone_known.sql: which of these time zones PostgreSQL knows, as an array. Run once a process and name, beside what is asked.
-- $1 text[]: the names
select array(select name from unnest($1::text[]) name where tasks.is_time_zone(name)) as known
