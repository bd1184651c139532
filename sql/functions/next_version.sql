-- next_version: takes the user's next number, and locks the account until the transaction ends; returns the number.
create or replace function tasks.next_version(p_user text) returns bigint
language plpgsql as $$
declare
    number bigint;
begin
    update tasks.account a set version = a.version + 1 where a.user_id = p_user returning a.version into number;
    if number is null then
        insert into tasks.account as a (user_id) values (p_user) -- it has its first number by the column's default
        on conflict (user_id) do update set version = a.version + 1 -- somebody was faster
        returning a.version into number;
    end if;
    return number;
end
$$;
