-- due.sql: what is due of a user's live tasks, the earliest first, and when that is: overdue, today, this week or later.
-- A time that is pinned to a zone is its moment; all else is as on a calendar that hangs in the zone below.
--   \set user demo
--   \set zone Europe/Berlin
--   \i sql/debug/due.sql
\if :{?user}
\else
    \set user demo
\endif
\if :{?zone}
\else
    \set zone UTC
\endif
select
    case
        when t.at < now() then 'overdue'
        when t.day <= t.today then 'today'
        when t.day < t.today + 7 then 'week'
        else 'later'
    end as due,
    t.due_date, t.due_time, t.due_time_zone, t.title, t.recurrence, t.occurrence, t.tags, t.id
from (
    select
        d.*,
        (now() at time zone :'zone')::date as today,
        case when d.due_time_zone is null then d.due_date else (d.at at time zone :'zone')::date end as day
    from (
        select
            t.*,
            case -- a day is past at its end
                when t.due_time is null then tasks.moment(t.due_date + 1, '00:00', :'zone')
                else tasks.moment(t.due_date, t.due_time, coalesce(t.due_time_zone, :'zone'))
            end as at
        from tasks.task t
        where t.user_id = :'user' and t.deleted_at is null and t.status <> 'completed' and t.due_date is not null
    ) d
) t
order by t.due_date, t.due_time nulls last, t.id;
