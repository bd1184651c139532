-- A batch locks the user's account before it changes anything; who has none yet gets one that has handed out no number.

alter table account drop constraint account_version_positive;
alter table account add constraint account_version_not_negative check (version >= 0);
