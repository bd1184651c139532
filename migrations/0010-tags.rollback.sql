-- And with it the domain's constraint: after `alter domain … drop constraint`, PostgreSQL 18 refuses what comes next.
drop function tasks.are_unlike cascade;
drop function tasks.tag_key;
drop function tasks.moment;
