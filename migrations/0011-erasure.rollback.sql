drop table tasks.number_floor;
