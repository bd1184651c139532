alter table tasks.task drop constraint task_consistent;
drop function tasks.check_task;
alter table tasks.task
    alter column title type text,
    alter column description type text,
    alter column priority type text,
    alter column version type bigint,
    add constraint task_user_id_length check (char_length(user_id) between 1 and 255),
    add constraint task_title_length check (char_length(title) between 1 and 100),
    add constraint task_title_trimmed check (title = btrim(
        title,
        E'\u0009\u000a\u000b\u000c\u000d\u0020\u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008'
        '\u2009\u200a\u2028\u2029\u202f\u205f\u3000'
    )),
    add constraint task_description_length check (char_length(description) <= 500),
    add constraint task_status_known check (status in ('pending', 'in_progress', 'completed')),
    add constraint task_priority_known check (priority in ('low', 'medium', 'high')),
    add constraint task_version_positive check (version >= 1),
    add constraint task_completed_at_matches_status check ((completed_at is not null) = (status = 'completed'));
alter table tasks.account
    alter column version type bigint,
    add constraint account_user_id_length check (char_length(user_id) between 1 and 255),
    add constraint account_version_exact check (version between 1 and 9007199254740991);
drop domain tasks.title;
drop domain tasks.description;
drop domain tasks.priority;
drop domain tasks.version;
do $$
declare
    known regprocedure;
begin
    for known in select oid from pg_proc where pronamespace = 'tasks'::regnamespace loop
        execute format('alter function %s cost 100', known);
    end loop;
end
$$;
