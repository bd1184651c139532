drop table tasks.change cascade; -- with functions that take its rows
alter table tasks.account drop column first_version, drop column history_floor, drop column erased_floor;
