drop index task_trash;
drop table idempotency;
