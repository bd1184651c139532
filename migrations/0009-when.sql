-- When and what for: due dates, recurrence and tags.

-- In its own spelling, so not what PostgreSQL takes in any case; nor what it takes for the name of a zone that it makes up
-- (POSIX: FOO3). The clause gives the session back its zone.
create function tasks.is_time_zone(p_name text) returns boolean
language plpgsql immutable set timezone = 'UTC' as $$
begin
    return set_config('TimeZone', p_name, true) = p_name
        and (p_name ~ '/' or p_name !~ '\d' or p_name in ('EST5EDT', 'CST6CDT', 'MST7MDT', 'PST8PDT', 'GMT0', 'GMT+0', 'GMT-0'));
exception
    when invalid_parameter_value then
        return false;
end
$$;

create domain tasks.due_date as date
    -- the years that have four digits
    constraint task_due_date_years check (value between '0001-01-01' and '9999-12-31');
create domain tasks.time_zone as text
    constraint task_due_time_zone_known check (tasks.is_time_zone(value));
create domain tasks.recurrence as text
    constraint task_recurrence_canonical check (value ~ (
        '^FREQ=(DAILY|WEEKLY|MONTHLY|YEARLY)(;INTERVAL=[1-9][0-9]{0,2})?(;BYMONTH=([1-9]|1[0-2]))?'
        '(;BYMONTHDAY=(-1|[1-9]|[12][0-9]|3[01])|;BYDAY=(-1|[1-4])?(MO|TU|WE|TH|FR|SA|SU)(,(MO|TU|WE|TH|FR|SA|SU)){0,6})?'
        '(;WKST=(TU|WE|TH|FR|SA|SU))?(;COUNT=[1-9][0-9]{0,3}|;UNTIL=[0-9]{8})?$'
    ));
create domain tasks.recurrence_anchor as text
    constraint task_recurrence_anchor_known check (value in ('due', 'completion'));
create domain tasks.tags as text[];

alter table tasks.task
    add column due_date tasks.due_date,
    add column due_time time(0),
    add column due_time_zone tasks.time_zone,
    add column recurrence tasks.recurrence,
    add column recurrence_anchor tasks.recurrence_anchor not null default 'due',
    add column recurrence_start tasks.due_date,
    add column series_id uuid,
    add column occurrence integer,
    add column tags tasks.tags not null default '{}';
