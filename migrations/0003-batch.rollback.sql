delete from account where version = 0;
alter table account drop constraint account_version_not_negative;
alter table account add constraint account_version_positive check (version >= 1);
