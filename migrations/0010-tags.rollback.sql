alter domain tasks.tags drop constraint task_tags_alike;
drop function tasks.are_unlike;
drop function tasks.tag_key;
drop function tasks.moment;
