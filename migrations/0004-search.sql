-- What a search compares: the same for all spellings of a word that a reader takes for one.

create function search_folded(plain text) returns text
language plpgsql immutable parallel safe as $$
declare
    folded text;
begin
    if octet_length(plain) = char_length(plain) then
        return upper(plain collate "C"); -- ASCII: the same as below, only sooner
    end if;

    -- Compatibility forms become what they stand for, and letters with marks become letters and marks. Nothing grows more
    -- than eightfold by that but one ligature, by eighteen: a sentence, for which its first word stands here.
    -- An acute accent that stands alone is an apostrophe that missed its key.
    folded := normalize(replace(replace(plain, U&'\FDFA', U&'\0635\0644\0649'), U&'\00B4', ''''), nfkd);

    -- What typography, or a keyboard, writes in another way.
    if folded ~ '[\u00ab\u00bb\u02b9-\u02bd\u058a\u05be\u05f3\u05f4\u0671\u0901\u2010-\u201f\u2032-\u203a\u2043\u2044\u2212\u275b-\u275e\u2e3a\u2e3b\u301d-\u301f]' then
        folded := replace(folded, U&'\2032\2032', '"');
        folded := regexp_replace(folded, '[\u02b9-\u02bd\u05f3\u2018-\u201b\u2032\u2035\u2039\u203a\u275b\u275c]', '''', 'g');
        folded := regexp_replace(folded, '[\u00ab\u00bb\u05f4\u201c-\u201f\u275d\u275e\u301d-\u301f]', '"', 'g');
        folded := regexp_replace(folded, '[\u058a\u05be\u2010-\u2015\u2043\u2212\u2e3a\u2e3b]', '-', 'g');
        folded := replace(folded, U&'\2044', '/'); -- of a fraction like one half
        folded := replace(folded, U&'\0671', U&'\0627'); -- an alef, with a mark that is no character of its own
        folded := replace(folded, U&'\0901', U&'\0902'); -- Hindi writes the dot of a nasal vowel with its moon or without
    end if;

    -- What a writer may leave out goes.
    -- Of all scripts: soft hyphens, joiners, zero-width spaces, directions, variation selectors.
    -- Latin, Greek, Cyrillic: all marks. Hebrew: points and accents. Arabic and Syriac: vowel signs, the small alef, the
    -- tatweel, and hamza and madda where they stand on another letter, as few people type them on an alef. The letters
    -- yeh, alef maksura, heh and teh marbuta remain four: they have no marks, and make other words.
    -- India: the nukta and the accents of the Vedas. Vowel signs, virama, anusvara, visarga and the tones of Thai, Lao
    -- and Burmese make other words, as the marks of Japanese syllables do: they stay.
    folded := regexp_replace(folded, '['
        '\u00ad\u034f\u061c\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef'
        '\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f'
        '\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\ufb1e'
        '\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed\u0898-\u089f\u08ca-\u08e1\u08e3-\u08ff'
        '\u0711\u0730-\u074a'
        '\u093c\u0951-\u0954\u09bc\u0a3c\u0abc\u0b3c\u0c3c\u0cbc\u1cd0-\u1cd2\u1cd4-\u1ce8\u1ced\u1cf4\u1cf7-\u1cf9\ua8e0-\ua8f1'
        '\U000110ba\U0001133b\U0001133c\U00011236\U000112e9\U00011446\U000114c3\U000115c0\U000116b7\U0001183a\U00011943'
        ']+', '', 'g');

    -- Upwards last, since one sigma has two small letters. Upwards by "C" first: the Turkish i has a capital of its own.
    return upper(lower(upper(folded collate "C") collate "default"));
end
$$;

comment on function search_folded is 'The text as a search compares it: without case, optional marks and typography.';
