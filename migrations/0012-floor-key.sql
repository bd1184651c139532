-- A key for the one row: Citus copies a table to a new node only when its rows have one.

alter table tasks.number_floor add constraint number_floor_pkey primary key (number);
