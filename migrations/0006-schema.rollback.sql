-- The functions go: those of an earlier version are none.
do $$
declare
    made regprocedure;
begin
    for made in select oid from pg_proc where pronamespace = 'tasks'::regnamespace and proname <> 'search_folded' loop
        execute format('drop function %s cascade', made);
    end loop;
end
$$;

drop table tasks.installed_functions;
alter function tasks.search_folded set schema public;
alter table tasks.idempotency set schema public;
alter table tasks.task set schema public;
alter table tasks.account set schema public;
