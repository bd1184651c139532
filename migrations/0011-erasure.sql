-- Where the counters of erased users have been, when nothing else of these users is left: one row for all of them. A
-- counter may be ahead of the clock, by which a new one begins; so a user who signs up again gets no number twice.

create table tasks.number_floor (
    number bigint not null
        constraint number_floor_exact check (number between 0 and 9007199254740991)
);

insert into tasks.number_floor values (0);

comment on table tasks.number_floor is 'One row: new counters begin beyond this number, the highest of an erased user.';
