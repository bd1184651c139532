-- answer_find.sql: what a create with this key answered first, with the hash of its request; all null when none did.
-- $1 text: the user
-- $2 text: the key
select
    idempotency.request_hash,
    idempotency.answer ->> 'id' as id,
    (idempotency.answer ->> 'version')::bigint as version,
    idempotency.answer as task
from (select) one
left join idempotency on idempotency.user_id = $1 and idempotency.key = $2
