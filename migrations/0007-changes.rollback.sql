drop table tasks.change;
alter table tasks.account drop column first_version, drop column history_floor, drop column erased_floor;
