-- distributed.sql: what distribute.sql has taken away, when tables and functions are on all nodes.
alter table tasks.task add constraint task_consistent check (tasks.check_fields(
    user_id, status, completed_at, due_date, due_time, due_time_zone, recurrence, recurrence_anchor, recurrence_start,
    series_id, occurrence
));
