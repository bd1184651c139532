-- Creates that a retry does not double, and what the purge finds its work by.

create table idempotency (
    user_id text not null
        constraint idempotency_user_id_length check (char_length(user_id) between 1 and 255),
    key text not null
        constraint idempotency_key_visible check (key ~ '^[!-~]{1,255}$'),
    request_hash bytea not null
        constraint idempotency_request_hash_sha256 check (octet_length(request_hash) = 32),
    answer json not null, -- not jsonb: the same bytes are answered again
    created_at timestamptz not null default clock_timestamp(),
    primary key (user_id, key)
);

comment on table idempotency is 'The Idempotency-Key of each create that had one, with its first answer; kept for a day.';
comment on column idempotency.request_hash is 'SHA-256 of the request: the same key with another request is an error.';

-- What the purge reads: the oldest keys, and the oldest trash. Live tasks are not in it, so that their writes pay nothing.
create index idempotency_oldest_first on idempotency (created_at);
create index task_trash on task (deleted_at) where deleted_at is not null;
