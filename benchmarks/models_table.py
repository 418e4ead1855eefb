"""What `make test-models` found, as the table of docs/models: a row for each kind of causal language model.

    .venv/bin/pytest tests/test_models.py -o junit_family=xunit1 --junitxml=FOUND.xml
    .venv/bin/python benchmarks/models_table.py FOUND.xml --write

Other forms of a kind (tests/zoo_rows.py) count for the kind: a check holds where it holds for all of them. Why a kind
is slower or refused is said here in words, and a kind without any is an error. Runs no model.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

from generation_table import markdown, put_block
from transformers import __version__ as transformers_version

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from zoo import KINDS, VARIANTS, why_not  # noqa: E402

START, END = "<!-- test-models: written by the command; do not edit -->", "<!-- test-models: end -->"
GUIDES = {"en": ROOT / "docs" / "models.md", "zh": ROOT / "docs" / "models.zh.md"}

# Column -> the tests behind it.
CHECKS = {
    "greedy": ("test_greedy_search_takes_what_the_plain_pass_likes_best",),
    "company": (
        "test_requests_in_company_see_the_scores_of_the_plain_pass",
        "test_groups_and_forced_phrases_see_the_scores_of_the_plain_pass",
    ),
    "budget": ("test_a_small_budget_changes_no_answer",),
    "prefix": ("test_a_common_beginning_is_read_once_and_changes_no_answer",),
    "training": (
        "test_documents_laid_end_to_end_have_the_losses_they_have_alone",
        "test_an_adapter_learns_what_it_learns_from_documents_alone",
    ),
    "merge": ("test_an_adapter_comes_back_from_its_files", "test_merged_it_answers_as_with_the_adapter"),
    "lora": ("test_one_request_has_an_adapter_and_its_neighbours_have_none",),
}
REFUSAL = "test_what_looks_ahead_is_refused_by_name"

WORDS = {
    "en": {
        "kind": "kind", "greedy": "greedy", "company": "samples, beams, groups, forced phrases",
        "budget": "small budget", "prefix": "prefix cache", "training": "training", "merge": "merge",
        "lora": "LoRA a request", "speed": "how fast", "missing": "what is missing, or why it is refused",
        "lean": "lean", "plain": "plain", "alone": "one text at a time", "refused": "refused", "unknown": "not run",
        "right": "✓", "wrong": "✗", "none": "–",
        "intro": "transformers {version}, {date}: {right} of {all} kinds answer and learn as they do alone, {company} "
        "of them in company; {refused} are refused, {unknown} cannot be run here. Command: `make test-models`.",
    },
    "zh": {
        "kind": "架构", "greedy": "贪心", "company": "采样、束搜索、分组束、强制词", "budget": "预算很小",
        "prefix": "前缀缓存", "training": "训练", "merge": "合并", "lora": "按请求选 LoRA", "speed": "速度",
        "missing": "缺什么，或为什么拒绝", "lean": "精简", "plain": "原样", "alone": "逐条", "refused": "拒绝",
        "unknown": "未运行", "right": "✓", "wrong": "✗", "none": "–",
        "intro": "transformers {version}，{date}：{all} 种架构中，{right} 种的生成与训练结果和单独运行时一致，其中 "
        "{company} 种可以多条文本同批；{refused} 种被拒绝，{unknown} 种在这里无法运行。命令：`make test-models`。",
    },
}  # fmt: skip

# Why a kind is slower, lacks something, or is refused.
REASONS = {
    "index": {
        "en": "it chooses the tokens to attend to with an index of its own",
        "zh": "用自带的索引挑选要关注的 token（稀疏注意力）",
    },
    "cache": {"en": "it keeps what it has read in a cache of its own kind", "zh": "状态保存在它自己的一种缓存里"},
    "own_attention": {
        "en": "its attention does not ask transformers' interface",
        "zh": "注意力没有走 transformers 的统一接口",
    },
    "relative": {
        "en": "its attention adds a bias that depends on the distance in the row",
        "zh": "注意力的偏置取决于整行里的距离",
    },
    "positions": {"en": "it counts positions along the row", "zh": "位置按整行计数，不看 position_ids"},
    "images": {"en": "its mask depends on where images stand", "zh": "注意力掩码取决于图像的位置"},
    "dynamic": {"en": "it chooses the tokens to attend to anew in each layer", "zh": "每一层都动态挑选要关注的 token"},
    "hashes": {
        "en": "its hashes sort the whole text: what follows a token changes its scores",
        "zh": "哈希对整段文本排序，后文会影响前面 token 的分数",
    },
    "encoder": {
        "en": "an encoder: its tokens see what follows them",
        "zh": "编码器：token 能看到后文",
    },
    "halves": {
        "en": "with experts it is refused: its router mixes the halves of the text",
        "zh": "带专家的版本被拒绝：路由把文本的前后两半混在一起",
    },
    "streams": {
        "en": "its predicting streams read biases at other tokens' places",
        "zh": "预测流会读到其他 token 位置上的偏置",
    },
    "both_ways": {
        "en": "it sees both ways unless each call brings a permutation",
        "zh": "默认双向可见，除非每次调用都给出排列掩码",
    },
    "context": {"en": "its tokens see the whole text", "zh": "每个 token 都能看到全文"},
    "timm": {"en": "its image tower needs the package timm", "zh": "图像部分需要 timm 包"},
    "drafter": {
        "en": "it drafts for another model and reads that model's cache",
        "zh": "推测解码的草稿模型，要读取另一个模型的 KV Cache",
    },
    "codes": {"en": "it reads and writes tracks of sound codes", "zh": "读写的是多轨音频编码，不是文本"},
    "experts": {
        "en": "LoRA a request: not with adapters on its experts' routers",
        "zh": "按请求选 LoRA：专家路由层上的适配器不支持，只能合并后使用",
    },
    "some_layers": {
        "en": "LoRA a request: not on layers that see other rows than the tokens",
        "zh": "按请求选 LoRA：部分层的输入不是逐 token 的，不能加",
    },
}  # fmt: skip

# Kind -> its reasons, beyond what the checks of all kinds tell.
WHY = {
    **dict.fromkeys(("axk2", "deepseek_v32", "dots3_note", "dots3_note_text", "glm_moe_dsa", "hy_v4"), ("index",)),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text", "minimax_m3_vl_text"), ("index",)),
    **dict.fromkeys(("deepseek_v4", "blt", "rwkv", "xlstm"), ("cache",)),
    **dict.fromkeys(("inkling_text", "inkling2_text"), ("relative",)),
    **dict.fromkeys(("git", "gemma4_unified"), ("images",)),
    "openai-gpt": ("own_attention",),
    "doge": ("dynamic", "halves"),
    "reformer": ("hashes",),
    "gemma3n": ("timm",),
    **dict.fromkeys(("musicgen", "musicgen_melody"), ("codes",)),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), ("drafter",)),
    "cpmant": ("context",),
    "prophetnet": ("streams",),
    "xlnet": ("both_ways",),
}


@dataclass
class Found:
    """What the tests recorded.

    Attributes:
        outcomes: of each test, name -> whether it passed.
        notes: of each name, what its tests noted: speed, and whether an adapter of one request was refused.
    """

    outcomes: dict[str, dict[str, bool]] = field(default_factory=dict)
    notes: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> Found:
        """From pytest's JUnit file."""
        found = cls()
        for case in ElementTree.parse(path).iter("testcase"):
            test, _, name = case.get("name", "").removesuffix("]").partition("[")
            name = re.sub(r"-(?:answers|learns)$", "", name)
            passed = not any(case.find(tag) is not None for tag in ("failure", "error", "skipped"))
            outcomes = found.outcomes.setdefault(test, {})
            outcomes[name] = passed and outcomes.get(name, True)
            for note in case.iter("property"):
                found.notes.setdefault(name, {})[note.get("name", "")] = note.get("value", "")
        return found

    def holds(self, tests: Iterable[str], names: Iterable[str]) -> bool | None:
        """Whether these tests passed for all of these names; None where none of them was made."""
        made = [self.outcomes.get(test, {}).get(name) for test in tests for name in names]
        passed = [outcome for outcome in made if outcome is not None]
        return all(passed) if passed else None


@dataclass(frozen=True)
class Row:
    """One kind. `checks` are of CHECKS, None where it was not made."""

    kind: str
    speed: str
    checks: dict[str, bool | None]
    reasons: tuple[str, ...]

    @property
    def is_right(self) -> bool:
        return all(value is not False for value in self.checks.values()) and self.checks["greedy"] is True

    def cells(self, words: dict[str, str], language: str) -> list[str]:
        marks = {True: words["right"], False: words["wrong"], None: words["none"]}
        reasons = "; ".join(REASONS[reason][language] for reason in self.reasons)
        return [f"`{self.kind}`", *(marks[self.checks[check]] for check in CHECKS), words[self.speed], reasons]


def row(found: Found, kind: str) -> Row:
    names = [kind, *(name for name, (base, _) in VARIANTS.items() if base == kind)]
    answering = [name for name in names if name in found.outcomes.get(CHECKS["greedy"][0], {})]
    checks = {check: found.holds(tests, answering) for check, tests in CHECKS.items()}
    notes = found.notes.get(kind, {})
    reasons = WHY.get(kind, ())
    if "adapter_refused" in notes:
        checks["lora"] = None
        reasons = (*reasons, "some_layers" if "cannot have" in notes["adapter_refused"] else "experts")
    if notes.get("speed") == "alone":
        checks["prefix"] = None
    if answering:
        speed = notes["speed"]
    elif found.holds([REFUSAL], [kind]) is not None:
        speed, reasons = "refused", reasons or ("encoder",)
    else:
        assert why_not(kind), f"{kind}: no test was made"
        speed = "unknown"
    assert reasons or speed in ("lean", "plain"), f"{kind}: say in WHY why it is {speed}"
    return Row(kind, speed, checks, reasons)


def rows(found: Found) -> list[Row]:
    return [row(found, kind) for kind in KINDS]


def block(found: Found, language: str, day: str) -> str:
    words, all_rows = WORDS[language], rows(found)
    intro = words["intro"].format(
        version=transformers_version,
        date=day,
        all=len(all_rows),
        right=sum(row.is_right for row in all_rows),
        company=sum(row.is_right and row.speed in ("lean", "plain") for row in all_rows),
        refused=sum(row.speed == "refused" for row in all_rows),
        unknown=sum(row.speed == "unknown" for row in all_rows),
    )
    head = [words["kind"], *(words[check] for check in CHECKS), words["speed"], words["missing"]]
    return f"{intro}\n\n{markdown([head, *(row.cells(words, language) for row in all_rows)])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", type=Path, help="pytest's JUnit file")
    parser.add_argument("--write", action="store_true", help="put the table into docs/models")
    asked = parser.parse_args()
    found = Found.of(asked.found)
    for language, guide in GUIDES.items():
        table = block(found, language, date.today().isoformat())
        if asked.write:
            guide.write_text(put_block(guide.read_text("utf-8"), table, START, END), "utf-8")
        elif language == "en":
            print(table)


if __name__ == "__main__":
    main()
