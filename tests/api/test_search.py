"""Search in every script: what a word finds, and what it must not."""

import unicodedata
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.api.test_lists import Reader
from tests.conftest import Served, User

FOUND = [
    # Han, with and without other scripts
    ("买iPhone手机", "手机"),
    ("买iPhone手机", "iphone手"),
    ("买iPhone手机", "iPhone"),
    ("买iPhone手机", "iph"),
    ("明天去超市买牛奶", "超市 牛奶"),
    ("明天去超市，买牛奶", "市,买"),
    ("第12章", "12"),
    ("𠮷野家で昼食", "野家"),
    ("𠮷野家で昼食", "𠮷"),
    ("二〇二六年", "〇二"),
    ("⽇本", "日"),  # a radical, which is a letter's compatibility form
    # Japanese
    ("歯医者に電話する", "電話"),
    ("スーパーでパンを買う", "パン"),
    ("ﾊﾟｿｺﾝを買う", "パソコン"),
    ("パソコンを買う", "ﾊﾟｿｺﾝ"),
    ("か\u3099くせい", "がくせい"),
    ("ガソリンカー", "ガソリンカ"),
    ("かかが かか", "かか"),
    ("がか", "か"),
    ("㌔あたり", "キロ"),
    ("人々", "々"),
    # Thai, Lao, Khmer, Burmese
    ("ไปซื้อนมที่ตลาด", "ตลาด"),
    ("ดื่มน้ำเย็น", "น้ำ"),
    ("ໄປຊື້ນົມ", "ນົມ"),
    ("ទិញ\u200bទឹកដោះគោ", "ទឹក"),
    ("ទិញទឹកដោះគោ", "ទឹក\u200bដោះ"),
    ("နို့ဝယ်ရန်", "ဝယ်"),
    # Korean: by the beginnings of words, of which a syllable's is one
    ("한국어 공부", "한국"),
    ("한국어 공부", "하"),
    ("한국어 공부", "고"),
    ("\u1112\u1161\u11ab국", "한국"),
    ("한국 が", "한국 が"),
    # Arabic
    ("مُحَمَّد", "محمد"),
    ("محمد", "مُحَمَّد"),
    ("محمـــد", "محمد"),
    ("هٰذا", "هذا"),
    ("أحمد إلى آخر", "احمد الى اخر"),
    ("احمد", "أحمد"),
    ("ٱلكتاب", "الكتاب"),
    ("ﷲ ﻻ", "الله لا"),
    ("ﺍﻟﺤﻠﻴﺐ", "الحليب"),
    ("ﷺ", "ﷺ"),
    ("ﷺ", "صلى"),
    ("صلى الله", "ﷺ"),
    ("شراء ٢٣ كتابا", "٢٣"),
    # Hebrew
    ("שָׁלוֹם", "שלום"),
    ("שלום", "שָׁלוֹם"),
    ("בְּרֵאשִׁ֖ית", "בראשית"),
    ("תל־אביב", "תל-אב"),
    ("ארה״ב", 'ארה"ב'),
    ("שּׁלום", "שלום"),
    # India
    ("ख़रीदना", "खरीद"),
    ("खरीद", "ख़रीद"),
    ("क\u093cलम", "\u0958लम"),
    ("चाँद", "चांद"),
    ("क्\u200dष", "क्ष"),
    ("काम।दूध", "दूध"),
    ("বাড়ি", "বাড\u09bcি"),
    ("৳৫০০", "৫০০"),
    # compatibility forms
    ("ﬁnd ﬂour", "find flour"),
    ("find", "ﬁnd"),
    ("Ｂｕｙ　ｍｉｌｋ", "buy milk"),
    ("buy milk", "ＢＵＹ ＭＩＬＫ"),
    ("step ①: x² in ㎏", "1 x2 kg"),
    ("½ litre", "1/2"),
    ("Ⅳ", "iv"),
    ("№ 7", "no"),
    ("𝓜𝓲𝓵𝓴", "milk"),
    # typography
    ("l’été", "l'ete"),
    ("l'été", "l’ÉTÉ"),
    ("it´s", "it's"),
    ("itʼs", "it's"),
    ("‚so‘ ‛so’", "'so'"),
    ("„Hallo“ “hi” «là»", '"hallo" "hi" "là"'),
    ('"Hallo"', "„Hallo“"),
    ("5″", '5"'),
    *((f"e{hyphen}mail", "e-mail") for hyphen in "‐‑‒–—―−﹣－"),
    ("e-mail", "e‑mail"),
    ("wait…", "wait..."),
    ("wait...", "wait…"),
    ("10\u00a0000\u202fkm", "000 km"),
    ("soft\u00adhyphen", "softhyphen"),
    ("zero\u200bwidth\u2060\ufeff", "zerowidth"),
    ("zerowidth", "zero\u200bwidth"),
    ("❤\ufe0f", "❤"),
    ("❤", "❤\ufe0f"),
    ("1️⃣", "1"),
    ("👩‍👩‍👧", "👩‍👩‍👧"),
    # case, and marks as before
    ("ΟΔΟΣ ὁδός", "οδος ΟΔΌΣ"),
    ("İstanbul ısı", "istanbul isi"),
    ("Ǆ Ŀ", "dz l"),
    ("Ёлка й", "елка и"),
    ("Việt Nam", "viet"),
    ("ﬆraße", "straß"),
    ("ܡܰܠܟܳܐ", "ܡܠܟܐ"),
]
NOT_FOUND = [
    ("买iPhone手机", "phone"),
    ("买iPhone手机", "机手"),
    ("买牛奶", "牛 油"),
    ("手机", "手機"),
    ("かぎ", "かき"),
    ("がく", "か"),
    ("パン", "ハン"),
    ("はし", "ばし"),
    ("カタカナ", "かたかな"),
    ("น้ำ", "น้า"),
    ("ตลาด", "ตาด"),
    ("ทำงาน", "ท่า"),
    ("한국어", "국어"),
    ("한국어", "한굴"),
    ("على", "علي"),
    ("المهام", "مهام"),
    ("مدرسة", "مدرسه"),
    ("שלום", "לום"),
    ("हिन्दी", "दी"),
    ("हिन्दी", "न्दी"),
    ("किताब", "कताब"),
    ("दिन", "दीन"),
    ("कम", "काम"),
    ("हंस", "हस"),
    ("தமிழ்", "மிழ்"),
    ("বাড়ি", "ড়ি"),
    ("২০২৬", "০২৬"),
    ("٢٠٢٦", "٠٢٦"),
    ("Straße", "strasse"),
    ("Œuvre", "oeuvre"),
    ("softhyphen", "hyphen"),
    ("e-mail", "e mails"),
    ("email", "e-mail"),
    ("'a'", '"a"'),
    ("ﬁnd", "ind"),
    ("x²", "x3"),
    ("ﷺ", "سلم"),
]


@pytest.mark.parametrize(("text", "q", "found"), [(*c, True) for c in FOUND] + [(*c, False) for c in NOT_FOUND])
async def test_what_is_found_in_title_and_description_alike(user: User, text: str, q: str, found: bool) -> None:
    for fields in ({"title": text}, {"title": "-", "description": text}):
        task = await user.create(**fields)
        assert (await user.call("GET", params={"q": q})).json() == ([task] if found else [])
        await user.call("DELETE", f"/{task['id']}")


@pytest.fixture(scope="module")
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.address, timeout=20) as opened:
        yield opened


# All planes, with the scripts whose marks, syllables and compatibility forms are folded more often than the rest.
LETTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from(
    "aé’“‑ﬁ①ﷺ㌔ \u3000-\u00ad\u00b4İıςßか\u3099ｶﾞ手ก\u0e33"
    "하\u11a8ا\u0654\u0640ש\u05c1क\u093c\u093f\u0901\u200d\u0345\u0301"
)
TEXTS = st.text(LETTERS, min_size=1, max_size=100).filter(lambda text: text.strip() != "")


@settings(max_examples=500, derandomize=True, database=None, deadline=None)
@given(title=TEXTS)
@example(title="a ´\u0301b")
@example(title="\u0301 x\u0301\u0327")
@example(title="ﷺ xﷺ")
@example(title="か\u3099か か")
def test_every_word_of_a_title_finds_it(http: httpx.Client, title: str) -> None:
    reader = Reader(f"words-{uuid4()}", http)
    task = reader.call("POST", json={"title": title}).json()
    for word in [*task["title"].split(), task["title"]]:
        # one ligature is a sentence: that is found by its first word, and only that is compared
        spelled = unicodedata.normalize("NFKC", word.replace("ﷺ", "صلى"))
        for q in (word, word.lower(), unicodedata.normalize("NFD", word), spelled):
            assert reader.call("GET", params={"q": q}).json() == [task], ascii((title, q))


@settings(max_examples=1000, derandomize=True, database=None, deadline=None)
@given(text=st.text(LETTERS, max_size=50))
def test_to_fold_twice_is_to_fold_once(connection: psycopg.Connection[Any], text: str) -> None:
    query = "select tasks.search_folded(%s), tasks.search_folded(tasks.search_folded(%s))"
    row = connection.execute(query, (text, text)).fetchone()
    assert row is not None
    assert row[0] == row[1], ascii(text)


def test_every_character_folds_once_and_grows_little(connection: psycopg.Connection[Any]) -> None:
    query = """
        select count(*), count(*) filter (where tasks.search_folded(folded) <> folded), max(char_length(folded))
        from (
            select tasks.search_folded(chr(n)) as folded
            from generate_series(1, 1114111) n
            where n not between 55296 and 57343
        ) one
    """
    assert connection.execute(query).fetchone() == (1_112_063, 0, 8)
