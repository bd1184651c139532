drop table task;
drop table account;
