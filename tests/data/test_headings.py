"""Texts with headings: which questions they give, which answers, and what is left out."""

from __future__ import annotations

from collections import Counter

import pytest

from danlu.data.formats import record_from_row
from danlu.data.headings import CHINESE, ENGLISH, heading_questions, sections
from danlu.errors import ConfigError, DataError

MARKDOWN = """# Handbook

## Aisle A
Shelf 1 holds *bolts*, shelf 2 holds [nuts](x.md).
They are counted on Mondays.

```
## no heading, this is code
```

## 冷库
冷库的温度是零下十八度，
每天检查两次。

## Where are the keys?
The keys hang beside the door.

### Empty

| code | what it is | where |
|---|---|---|
| A7 | **shelf** seven | aisle A |
| `B|2` | nothing | |
"""


def found(text):
    return [(one.heading, one.text) for one in sections(text.splitlines(), "t")]


def asked(path, **options):
    return [tuple(message["content"] for message in row["messages"]) for row in heading_questions(str(path), **options)]


def test_markdown(tmp_path):
    (tmp_path / "t.md").write_text(MARKDOWN, "utf-8")
    pairs = asked(tmp_path / "t.md", shortest=4)
    assert [question for question, _ in pairs[:4]] == [form.format("Aisle A") for form in ENGLISH]
    assert pairs[0][1] == "Shelf 1 holds *bolts*, shelf 2 holds nuts. They are counted on Mondays."
    assert [question for question, _ in pairs[4:8]] == [form.format("冷库") for form in CHINESE]
    assert pairs[4][1] == "冷库的温度是零下十八度，每天检查两次。"  # Chinese lines join without a space
    assert ("Where are the keys?", "The keys hang beside the door.") in pairs
    assert ("What is A7?", "what it is：shelf seven；where：aisle A") in pairs
    assert not any("code" in question or "Empty" in question for question, _ in pairs)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("第一章 总则\n本办法适用于仓库。\n第二章 附则\n自发布之日起施行。",
         [("总则", "本办法适用于仓库。"), ("附则", "自发布之日起施行。")]),
        ("一、入库\n先登记。\n\n二、出库\n再核对。", [("入库", "先登记。"), ("出库", "再核对。")]),
        ("1.2 Scales\nThey weigh.\n1. A sentence of a list, which ends as one.\n",
         [("Scales", "They weigh.\n1. A sentence of a list, which ends as one.")]),
        ("问：几点开门？\n答：八点。\n周日不开。\nQ: Who?\nA: Nobody.",
         [("几点开门？", "八点。周日不开。"), ("Who?", "Nobody.")]),
        ("托盘：放货物的平板。\n**叉车**：搬运托盘的车。\n- 货架：放托盘的架子。",
         [("托盘", "放货物的平板。"), ("叉车", "搬运托盘的车。"), ("货架", "放托盘的架子。")]),
        ("Title\n=====\nBelow it.\n\nSub\n---\nMore.", [("Title", "Below it."), ("Sub", "More.")]),
        ("# A\n这里有两点：\n第一点：不是术语。\n", [("A", "这里有两点：第一点：不是术语。")]),
        ("no heading at all", []),
    ],
)  # fmt: skip
def test_forms_of_headings(text, pairs):
    assert found(text) == pairs


def test_headings_of_one_name_are_told_apart(tmp_path):
    (tmp_path / "t.md").write_text("# 甲\n## 安装\n把甲装到墙上就好。\n# 乙\n## 安装\n把乙放到地上就好。\n", "utf-8")
    questions = [question for question, _ in asked(tmp_path / "t.md", shortest=4)]
    assert questions[0] == "什么是甲：安装？"
    assert questions[4] == "什么是乙：安装？"


def test_long_texts_end_with_a_sentence(tmp_path):
    (tmp_path / "t.md").write_text("# 甲\n" + "一二三四五六七八九。" * 9 + "\n# 乙\n" + "字" * 90, "utf-8")
    pairs = asked(tmp_path / "t.md", longest=35)
    assert {answer for _, answer in pairs} == {"一二三四五六七八九。" * 3}  # 乙 has no end to be cut at


def test_rows_are_records_and_all_of_a_heading_are_one_group():
    rows = list(heading_questions())
    records = [record_from_row(row, None, "x") for row in rows]
    assert len(rows) > 400
    assert set(Counter(record.group for record in records).values()) == {4}
    assert all(rows[at]["messages"][1]["content"].endswith("。") for at in range(len(rows)))
    assert "什么是 LoRA？" in [row["messages"][0]["content"] for row in rows]


def test_a_folder_and_questions_of_ones_own(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"一、{name}\n这是关于它的一句话。", "utf-8")
    assert asked(tmp_path, questions=["说说{}"]) == [
        ("说说 a", "这是关于它的一句话。"), ("说说 b", "这是关于它的一句话。"),
    ]  # fmt: skip


def test_what_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "t.md").write_text("no heading at all", "utf-8")
    with pytest.raises(DataError, match="no heading with a text"):
        asked(tmp_path / "t.md")
    with pytest.raises(DataError, match="nowhere"):
        asked(tmp_path / "nowhere.md")
    with pytest.raises(ConfigError, match="questions"):
        asked(tmp_path / "t.md", questions=["no place"])
    with pytest.raises(ConfigError, match="shortest"):
        asked(tmp_path / "t.md", shortest=0)
