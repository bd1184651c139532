-- The functions go as well: an earlier version has none that write.
do $$
declare
    made regprocedure;
begin
    for made in select oid from pg_proc where pronamespace = 'tasks'::regnamespace and proname <> 'search_folded' loop
        execute format('drop function %s', made);
    end loop;
end
$$;

drop table installed_functions;
