"""A right answer -> wrong ones that look like it: another number, another name, the contrary, another answer.

Numbers and names are taken from the same passage where it has others, so that a wrong answer has no word that the
passage has not: counting words does not find it out. What is changed is never certain to be wrong (a passage may say
both), and mostly is (FactCC: Kryscinski et al. 2020, arXiv:1910.12840). Knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from random import Random

from danlu.evaluate.rows import is_chinese

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
# Names: of English what is written large inside a sentence, of Chinese what is quoted or ends as names of places,
# bodies and persons of rank do.
_ENGLISH_NAME = re.compile(r"(?<![.!?] )(?<!^)\b[A-Z][a-z]+(?: [A-Z][a-z]+)*\b")
_CHINESE_NAME = re.compile(
    r"《[^》]{1,20}》|“[^”]{1,12}”|[\u4e00-\u9fff]{2}(?:省|市|县|区|国|镇|岛|山|河|湖|大学|学院|公司|军|党|队|站|寺|王|帝)"
)
_ENGLISH_VERB = re.compile(r"\b(?:is|was|are|were|has|have|had|will|can|could|would|should|did|does)\b(?! not\b)")
# What is said -> its contrary, in one place; the first that is found counts.
_CHINESE_CONTRARY = {
    "不是": "是", "没有": "有", "不能": "能", "不会": "会", "未能": "能", "增加": "减少", "上升": "下降",
    "提高": "降低", "最大": "最小", "最高": "最低", "最早": "最晚", "以上": "以下", "之前": "之后", "成为": "没有成为",
    "可以": "不可以", "属于": "不属于", "位于": "不位于", "是": "不是", "有": "没有", "能": "不能", "会": "不会",
    "为": "不为", "在": "不在", "被": "没有被",
}  # fmt: skip

Change = Callable[[str, str, Random], str | None]


def wrong_answers(answer: str, context: str, others: Sequence[str], rng: Random) -> dict[str, str]:
    """Kind of change -> the changed answer; kinds that find nothing to change are left out.

    Args:
        others: other right answers on the same passage; one that holds the answer, or is held by it, is none.
    """
    found = {name: change(answer, context, rng) for name, change in CHANGES.items()}
    apart = [other for other in others if other not in answer and answer not in other]
    if apart:
        found["swapped"] = rng.choice(apart)
    return {name: text for name, text in found.items() if text is not None and text != answer}


def _other_number(answer: str, context: str, rng: Random) -> str | None:
    """One number of it becomes another of the passage; where that has none, one of its digits another."""
    places = list(_NUMBER.finditer(answer))
    if not places:
        return None
    own = {place[0] for place in places}
    known = sorted(set(_NUMBER.findall(context)) - own)
    place = rng.choice(places)
    if not known:
        at = rng.choice([at for at, char in enumerate(place[0]) if char.isdigit()])
        digit = str((int(place[0][at]) + rng.randrange(1, 10)) % 10)
        return _put(answer, place, place[0][:at] + digit + place[0][at + 1 :])
    alike = [number for number in known if len(number) == len(place[0])]
    return _put(answer, place, rng.choice(alike or known))


def _other_name(answer: str, context: str, rng: Random) -> str | None:
    pattern = _CHINESE_NAME if any(map(is_chinese, answer)) else _ENGLISH_NAME
    places = list(pattern.finditer(answer))
    known = sorted({name for name in pattern.findall(context) if name not in answer})
    return _put(answer, rng.choice(places), rng.choice(known)) if places and known else None


def _contrary(answer: str, context: str, rng: Random) -> str | None:
    if not any(map(is_chinese, answer)):
        place = _ENGLISH_VERB.search(answer)
        return _put(answer, place, f"{place[0]} not") if place else answer.replace(" not ", " ", 1)
    said = next((said for said in _CHINESE_CONTRARY if said in answer), None)
    return None if said is None else answer.replace(said, _CHINESE_CONTRARY[said], 1)


def _put(text: str, place: re.Match[str], new: str) -> str:
    return text[: place.start()] + new + text[place.end() :]


CHANGES: Mapping[str, Change] = {"number": _other_number, "name": _other_name, "contrary": _contrary}
