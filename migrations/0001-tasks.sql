-- The whole schema: one counter per user, and the user's tasks.
--
-- `task` is what the API answers: its columns are the fields, in their order, and there is no private one.
-- The checks repeat the API's limits, so that a row written by hand is as valid as one written by the service.
-- They have names, because a person in psql meets them in an error message.

create table account (
    user_id text primary key
        constraint account_user_id_length check (char_length(user_id) between 1 and 255),
    version bigint not null
        constraint account_version_positive check (version >= 1)
);

comment on table account is 'One row per user who ever wrote; its lock makes the user''s writes queue up.';
comment on column account.version is 'The number of the user''s latest change; the next change takes the next number.';

-- There is no foreign key to account: every statement that inserts a task inserts or locks the account row first,
-- and the check that a foreign key would add locks that row a second time.
create table task (
    id uuid not null,
    user_id text not null
        constraint task_user_id_length check (char_length(user_id) between 1 and 255),
    title text not null
        constraint task_title_length check (char_length(title) between 1 and 100)
        -- Unicode's white space, as the service trims it: with at least one character left, a title is not blank either
        constraint task_title_trimmed check (title = btrim(
            title,
            E'\u0009\u000a\u000b\u000c\u000d\u0020\u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008'
            '\u2009\u200a\u2028\u2029\u202f\u205f\u3000'
        )),
    description text
        constraint task_description_length check (char_length(description) <= 500),
    status text not null default 'pending'
        constraint task_status_known check (status in ('pending', 'in_progress', 'completed')),
    priority text not null default 'medium'
        constraint task_priority_known check (priority in ('low', 'medium', 'high')),
    is_completed boolean not null generated always as (status = 'completed') stored,
    completed_at timestamptz,
    created_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    deleted_at timestamptz,
    version bigint not null
        constraint task_version_positive check (version >= 1),
    primary key (user_id, id),
    constraint task_completed_at_matches_status check ((completed_at is not null) = (status = 'completed'))
) with (fillfactor = 90); -- room in each page, so that an update can stay in it and touch no index

comment on column task.version is 'The number of the user''s change that last touched this task.';

-- The default list: the user's live tasks, newest first.
create index task_newest_first on task (user_id, created_at desc, id) where deleted_at is null;
