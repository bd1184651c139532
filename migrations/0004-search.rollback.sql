drop function search_folded;
