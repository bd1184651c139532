-- With it goes the domain's check. Dropped by itself, that fails before the next savepoint (PostgreSQL 18).
drop function tasks.are_unlike cascade;
drop function tasks.tag_key;
drop function tasks.moment;
