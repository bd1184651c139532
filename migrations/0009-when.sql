-- When and what for: due dates, recurrence and tags.

-- In its own spelling, so not what PostgreSQL takes in any case; nor what it takes for the name of a zone that it makes up
-- (POSIX: FOO3). The clause gives the session back its zone. Strict, so that it does not run for a task without a zone.
create function tasks.is_time_zone(p_name text) returns boolean
language plpgsql immutable strict set timezone = 'UTC' as $$
begin
    return set_config('TimeZone', p_name, true) = p_name
        and (p_name ~ '/' or p_name !~ '\d' or p_name in ('EST5EDT', 'CST6CDT', 'MST7MDT', 'PST8PDT', 'GMT0', 'GMT+0', 'GMT-0'));
exception
    when invalid_parameter_value then
        return false;
end
$$;

-- Without checks on the domains yet, this writes no row: where a domain has one, PostgreSQL writes the table anew.
create domain tasks.due_date as date;
create domain tasks.due_time as time(0);
create domain tasks.time_zone as text;
create domain tasks.recurrence as text;
create domain tasks.recurrence_anchor as text;
create domain tasks.occurrence as integer;
create domain tasks.tags as text[];

alter table tasks.task
    add column due_date tasks.due_date,
    add column due_time tasks.due_time,
    add column due_time_zone tasks.time_zone,
    add column recurrence tasks.recurrence,
    add column recurrence_anchor tasks.recurrence_anchor not null default 'due',
    add column recurrence_start tasks.due_date,
    add column series_id uuid,
    add column occurrence tasks.occurrence,
    add column tags tasks.tags not null default '{}';

-- the years that have four digits
alter domain tasks.due_date add constraint task_due_date_years check (value between '0001-01-01' and '9999-12-31');
-- PostgreSQL's days have a 24:00, no clock has
alter domain tasks.due_time add constraint task_due_time_on_the_clock check (value < '24:00');
alter domain tasks.time_zone add constraint task_due_time_zone_known check (tasks.is_time_zone(value));
alter domain tasks.recurrence add constraint task_recurrence_canonical check (
    value ~ ( -- each part
        '^FREQ=(DAILY|WEEKLY|MONTHLY|YEARLY)(;INTERVAL=([2-9]|[1-9][0-9]{1,2}))?(;BYMONTH=([1-9]|1[0-2]))?'
        '(;BYMONTHDAY=(-1|[1-9]|[12][0-9]|3[01])|;BYDAY=(-1|[1-4])?(MO|TU|WE|TH|FR|SA|SU)(,(MO|TU|WE|TH|FR|SA|SU)){0,6})?'
        '(;WKST=(TU|WE|TH|FR|SA|SU))?'
        '(;COUNT=[1-9][0-9]{0,3}|;UNTIL=(?!0000)[0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01]))?$'
    )
    and value ~ ( -- and together; FREQ and INTERVAL alone are for the anchor `completion`
        '^FREQ=(DAILY[^B]*|WEEKLY[^B]*;BYDAY=[A-Z,]+(;WKST=..)?|MONTHLY[^B]*;BY(MONTHDAY=[-0-9]+|DAY=-?[0-9][A-Z]+)'
        '|YEARLY[^B]*;BYMONTH=[0-9]+;BY(MONTHDAY=[-0-9]+|DAY=-?[0-9][A-Z]+)|[A-Z]+(;INTERVAL=[0-9]+)?)'
        '(;(COUNT|UNTIL)=[0-9]+)?$'
    )
    and value !~ '^FREQ=(DAILY.*WKST|(WEEKLY|MONTHLY|YEARLY)(;INTERVAL=[0-9]+)?;(COUNT|UNTIL))'
);
alter domain tasks.recurrence_anchor add constraint task_recurrence_anchor_known check (value in ('due', 'completion'));
alter domain tasks.occurrence add constraint task_occurrence_positive check (value >= 1);

-- One check with the names of several: each check of a domain costs time in each statement, even for what it has not to do
-- with. The last one leaves out the planes that still get letters: PostgreSQL and the service may be of different years.
create function tasks.check_tags(p_tags text[]) returns boolean
language plpgsql immutable as $$
declare
    joined constant text := array_to_string(p_tags, ',');
    space constant text := '[\u0009-\u000d\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]';
    violated constant text := case
        when cardinality(p_tags) > 20 then 'task_tags_number'
        when '' = any (p_tags) or joined ~ '[^,]{51}' then 'task_tags_length'
        -- nor nulls, nor arrays of arrays
        when string_to_array(joined, ',') is distinct from p_tags then 'task_tags_commas'
        when joined ~ ('(^|,)' || space) or joined ~ (space || '(,|$)') then 'task_tags_trimmed'
        when regexp_replace(joined, '[\U00010000-\U0010ffff]', ',', 'g') is not nfc normalized then 'task_tags_normalized'
    end;
begin
    if violated is null then
        return true;
    end if;
    raise check_violation using
        message = format('value for domain tasks.tags violates check constraint "%s"', violated),
        schema = 'tasks', datatype = 'tags', constraint = violated;
end
$$;
alter domain tasks.tags add constraint task_tags_good check (cardinality(value) = 0 or tasks.check_tags(value));

-- A field that another one needs. The first condition is all that a task without a due date pays.
create or replace function tasks.check_task(p_task tasks.task) returns boolean
language plpgsql immutable as $$
declare
    violated text;
begin
    if p_task.status in ('pending', 'in_progress', 'completed')
        and (p_task.completed_at is not null) = (p_task.status = 'completed')
        and p_task.due_time is null and p_task.due_time_zone is null and p_task.recurrence is null
        and p_task.recurrence_start is null and p_task.series_id is null and p_task.occurrence is null
        and p_task.recurrence_anchor = 'due'
        and char_length(p_task.user_id) between 1 and 255
    then
        return true;
    end if;
    violated := case
        when p_task.status not in ('pending', 'in_progress', 'completed') then 'task_status_known'
        when (p_task.completed_at is not null) <> (p_task.status = 'completed') then 'task_completed_at_matches_status'
        when char_length(p_task.user_id) not between 1 and 255 then 'task_user_id_length'
        when p_task.due_time is not null and p_task.due_date is null then 'task_due_time_needs_due_date'
        when p_task.due_time_zone is not null and p_task.due_time is null then 'task_due_time_zone_needs_due_time'
        when p_task.recurrence is not null and p_task.due_date is null then 'task_recurrence_needs_due_date'
        when num_nulls(p_task.recurrence, p_task.recurrence_start, p_task.series_id, p_task.occurrence) not in (0, 4)
            then 'task_series_complete'
        when p_task.recurrence_anchor = 'due' then case
            when p_task.recurrence ~ '^FREQ=(WEEKLY|MONTHLY|YEARLY)(;INTERVAL=[0-9]+)?$' then 'task_recurrence_has_its_day'
        end
        when p_task.recurrence is null then 'task_recurrence_anchor_needs_recurrence'
        when p_task.recurrence !~ '^FREQ=[A-Z]+(;INTERVAL=[0-9]+)?$' then 'task_recurrence_after_completion_is_plain'
    end;
    if violated is null then
        return true;
    end if;
    raise check_violation using
        message = format('new row for relation "task" violates check constraint "%s"', violated),
        schema = 'tasks', table = 'task', constraint = violated;
end
$$;
