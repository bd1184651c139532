-- The limits of a field become checks of a domain, those of a whole row become one check.
--
-- PostgreSQL reads and plans each check of a table anew in each statement that writes a row, which was a third of the time
-- of a write. It keeps those of a domain for the whole session, and they look at what is new in a row only.
-- user_id stays a plain text: Citus finds no rows by a domain.

create domain tasks.title as text;
create domain tasks.description as text;
create domain tasks.priority as text;
create domain tasks.version as bigint;

-- Without checks on the domains yet, this changes no row.
alter table tasks.account
    drop constraint account_user_id_length, -- that of a task is enough
    drop constraint account_version_exact,
    alter column version type tasks.version;
alter table tasks.task
    drop constraint task_user_id_length,
    drop constraint task_title_length,
    drop constraint task_title_trimmed,
    drop constraint task_description_length,
    drop constraint task_status_known,
    drop constraint task_priority_known,
    drop constraint task_version_positive,
    drop constraint task_completed_at_matches_status,
    alter column title type tasks.title,
    alter column description type tasks.description,
    alter column priority type tasks.priority,
    alter column version type tasks.version;

alter domain tasks.title add constraint task_title_length check (char_length(value) between 1 and 100);
-- Unicode's white space, as the service trims it: with at least one character left, a title is not blank either
alter domain tasks.title add constraint task_title_trimmed check (value = btrim(
    value,
    E'\u0009\u000a\u000b\u000c\u000d\u0020\u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008'
    '\u2009\u200a\u2028\u2029\u202f\u205f\u3000'
));
alter domain tasks.description add constraint task_description_length check (char_length(value) <= 500);
alter domain tasks.priority add constraint task_priority_known check (value in ('low', 'medium', 'high'));
-- JavaScript's numbers are exact below 2^53
alter domain tasks.version add constraint version_exact check (value between 1 and 9007199254740991);

-- One check for all that a row's fields have to do with each other: what it costs is that there is a check at all, and each
-- column that it names; so it takes the row.
create function tasks.check_task(p_task tasks.task) returns boolean
language plpgsql immutable as $$
declare
    violated text;
begin
    if p_task.status in ('pending', 'in_progress', 'completed')
        and (p_task.completed_at is not null) = (p_task.status = 'completed')
        and char_length(p_task.user_id) between 1 and 255
    then
        return true;
    end if;
    violated := case
        when p_task.status not in ('pending', 'in_progress', 'completed') then 'task_status_known'
        when (p_task.completed_at is not null) <> (p_task.status = 'completed') then 'task_completed_at_matches_status'
        else 'task_user_id_length'
    end;
    raise check_violation using
        message = format('new row for relation "task" violates check constraint "%s"', violated),
        schema = 'tasks', table = 'task', constraint = violated;
end
$$;
alter table tasks.task add constraint task_consistent check (tasks.check_task(task));
