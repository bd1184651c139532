alter table tasks.number_floor drop constraint number_floor_pkey;
