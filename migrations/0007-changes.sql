-- Every change leaves one row a task: what the feed of changes, history and undo are made from.

alter table tasks.account
    -- The first number of this counter: what is below it was never given to the user, or by an earlier counter.
    add column first_version bigint not null default 1,
    -- History has been erased up to this number, and what was erased for good is told only beyond this one.
    add column history_floor bigint not null default 0,
    add column erased_floor bigint not null default 0;

update tasks.account set history_floor = version, erased_floor = version; -- nothing was logged so far

create table tasks.change (
    user_id text not null,
    version bigint not null,
    task_id uuid not null,
    at timestamptz not null,
    operation text not null,
    before json, -- json, not jsonb: it takes half the time to write
    after json,
    primary key (user_id, version, task_id)
);

comment on table tasks.change is
    'One row a change and task: the fields that it changed, as they were before and after. Kept for 30 days.';
comment on column tasks.change.operation is
    'The request''s: create, update, complete, delete, restore, batch, undo; erase: the task was erased for good, told for'
    ' 400 days; erased: a change to a task that was erased later, which cannot be undone.';
comment on column tasks.change.before is 'Null when the change created the task.';
