-- zone_known.sql: whether PostgreSQL has a time zone of this name, in this spelling.
-- $1 text: the name
select tasks.is_time_zone($1) as is_known
