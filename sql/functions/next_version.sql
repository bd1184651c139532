-- next_version: takes the user's next number, and locks the account until the transaction ends; returns the number.
create or replace function tasks.next_version(p_user text) returns bigint
language plpgsql as $$
declare
    number bigint;
begin
    update tasks.account a set version = a.version + 1 where a.user_id = p_user returning a.version::bigint into number;
    if number is null then
        number := greatest( -- beyond all that an earlier counter can have given
            floor(extract(epoch from clock_timestamp()) * 1000)::bigint,
            (select max(f.number) + 1 from tasks.number_floor f)
        );
        insert into tasks.account as a (user_id, version, first_version) values (p_user, number, number)
        on conflict (user_id) do update set version = a.version + 1 -- somebody was faster
        returning a.version::bigint into number;
    end if;
    return number;
end
$$;
