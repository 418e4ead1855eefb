"""The pages' dictionary: both languages have the same keys and places, and each is said somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import danlu.ui
from danlu.ui import decode_page
from danlu.ui.shell import PAGES
from danlu.ui.words import dictionary, language_of

STATIC = Path(danlu.ui.__file__).parent / "static"
SCRIPTS = " ".join(path.read_text("utf-8") for path in STATIC.glob("*.js"))
SERVER = " ".join(path.read_text("utf-8") for path in STATIC.parent.glob("*.py"))
# Keys that are put together: what stands before the last point.
MADE = {"nav", "lead", "state", "group", "method", "advice"}


def test_both_languages_have_the_same_keys_and_places():
    english, chinese = dictionary("en"), dictionary("zh")
    assert list(english) == list(chinese)

    def places(text):
        return sorted(re.findall(r"\{(\w+)\}", text))

    assert [key for key in english if places(english[key]) != places(chinese[key])] == []
    assert all(english.values())
    assert all(chinese.values())


def test_no_key_stands_twice():
    def pairs(found):
        assert len(dict(found)) == len(found)
        return dict(found)

    json.loads((STATIC / "words.json").read_text("utf-8"), object_pairs_hook=pairs)


def test_every_word_that_is_asked_for_is_there():
    asked = set(re.findall(r'\bt\("([\w.]+)"', SCRIPTS)) | set(re.findall(r"said\['([\w.]+)'\]", SERVER))
    assert len(asked) > 100
    assert asked - dictionary("en").keys() == set()


def test_nothing_stands_in_the_dictionary_that_nobody_says():
    said = SCRIPTS + SERVER
    made = set(re.findall(r"t\(`(\w+)\.\$", SCRIPTS)) | MADE
    whole = {key for key in dictionary("en") if f'"{key}"' in said or f"'{key}'" in said}
    assert {key for key in dictionary("en").keys() - whole if key.partition(".")[0] not in made} == set()


def test_the_pages_groups_and_advice_have_words():
    words = dictionary("en")
    assert {f"{head}.{page}" for head in ("nav", "lead") for page in PAGES} <= words.keys()
    assert {f"group.{name}" for name in (*decode_page.GROUPS, "rest")} <= words.keys()
    knobs = {name for group in decode_page._form("en") for name in (field["name"] for field in group["fields"])}
    assert {key.removeprefix("advice.") for key in words if key.startswith("advice.")} <= knobs


def test_the_language_is_the_address_s_then_the_browser_s():
    assert language_of("zh", "en") == "zh"
    assert language_of(None, "fr-FR,zh-CN;q=0.9,en;q=0.8") == "zh"
    assert language_of("xx", "en-GB") == "en"
    assert language_of(None, "") == "en"  # the tests' own language
