-- schema_applied.sql: the names of the migrations that are applied, as text[].
select array(select migration_id::text from _yoyo_migration) as migrations
