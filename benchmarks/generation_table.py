"""What benchmarks/generate.py measured, as tables on the terminal and as a block of README and docs/generation.

The block stands between two marks and is written by `--write` alone, in the language of its file. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

START, END = "<!-- bench-generate: written by the command; do not edit -->", "<!-- bench-generate: end -->"
TARGETS = {  # work: (peer, least ratio), for Danlu in bfloat16
    "greedy-1": ("transformers", 1.3),
    "greedy-32": ("transformers", 1.8),
    "sample-8": ("transformers", 2.5),
    "beam": ("transformers", 2.5),
    "groups": ("transformers-4.56", 2.5),
    "forced": ("transformers-4.56", 3.0),
}
TARGET_SIDE = "Danlu bfloat16"
INSTRUCTIONS = {"avx512": "AVX-512 with bfloat16", "avx2": "AVX2"}
BUSY_PERCENT = 10  # of the processor, taken by others before the first measurement
WORDS = {
    "en": {
        "greedy-1": "greedy, 1 row",
        "greedy-32": "greedy, 32 different prompts",
        "sample-8": "8 samples of one prompt",
        "beam": "beam 8",
        "groups": "4 groups × 2 beams",
        "forced": "2 forced phrases, 8 beams",
        "work": "work",
        "refused": "refused",
        "limited": ", every side kept to {isa}",
        "holds": "target",
        "yes": "holds",
        "no": "missed",
        "unknown": "not measured",
        "intro": "SmolLM2-135M, {new_tokens} new tokens after prompts of 160 (greedy) or 512 tokens; {machine}; new "
        "tokens of all rows a second over the whole call, reading the prompt included; median of {runs} calls with "
        "fresh prompts; {date}. Command: `make bench-generate{limit}`.",
        "ratios": "Ratios, Danlu to peer (a target is for bfloat16):",
        "price": "KL of the next token's distribution to float32, mean over {positions} positions of the model's own "
        "text (share of equal first choices): {list}. The model was made from a Q4_1 file, so Q4_1 weights lose "
        "nothing against float32 ones, and int4, which finds most of that grid again, less than it does elsewhere: see "
        "the guide to quantization.",
        "settings": "Best settings: {list}.",
        "why": "Refused or failed: {list}.",
    },
    "zh": {
        "greedy-1": "贪心，1 行",
        "greedy-32": "贪心，32 个不同提示词",
        "sample-8": "同一提示词采样 8 份",
        "beam": "束搜索，8 束",
        "groups": "4 组 × 2 束",
        "forced": "2 个强制短语，8 束",
        "work": "任务",
        "refused": "拒绝",
        "limited": "，各方都限制在 {isa}",
        "holds": "目标",
        "yes": "达到",
        "no": "未达到",
        "unknown": "未测",
        "intro": "SmolLM2-135M，提示词 160（贪心）或 512 个 token，生成 {new_tokens} 个新 token；{machine}；数值为"
        "所有行每秒的新 token 数，按整次调用计，含读提示词的时间；每次调用用全新的提示词，取 {runs} 次的中位数；"
        "{date}。命令：`make bench-generate{limit}`。",
        "ratios": "Danlu 与各对手之比（目标针对 bfloat16）：",
        "price": "下一个 token 的分布相对 float32 的 KL 散度，在模型自己生成的文本的 {positions} 个位置上取平均"
        "（括号内为首选 token 相同的比例）：{list}。模型本由 Q4_1 文件而来，故 Q4_1 权重相对 float32 没有损失，"
        "int4 也大致落回同一网格，比在别的模型上好看：见量化指南。",
        "settings": "各自的最佳设置：{list}。",
        "why": "拒绝或失败的原因：{list}。",
    },
}
README_FILES = {"README.md": "en", "README.zh-CN.md": "zh"}
DOCS_FILES = {"docs/generation.md": "en", "docs/generation.zh.md": "zh"}

Column = dict[str, Any]
Rows = list[list[str]]


def was_busy(found: dict[str, Any]) -> bool:
    """Whether something else took so much of the machine that the numbers say little."""
    return bool(found["busy_percent"] > BUSY_PERCENT)


def title(column: Column) -> str:
    """The side's name with the version that answered."""
    name = str(column["name"])
    return name if is_ours(column) else f"{name.removesuffix('-4.56')} {column['version'] or ''}".strip()


def is_ours(column: Column) -> bool:
    return str(column["name"]).startswith("Danlu")


def speed(cell: dict[str, Any] | None, words: dict[str, str]) -> str:
    if cell is None:
        return "–"
    return words["refused"] if "refused" in cell else f"{cell['rate']:.0f} ({cell['format']})"


def speed_rows(found: dict[str, Any], words: dict[str, str]) -> Rows:
    """Header and a row a work: tokens/s and number format of every side."""
    head = [words["work"], *(title(column) for column in found["columns"])]
    return [head, *([words[work], *(speed(column["cells"].get(work), words) for column in found["columns"])]
                    for work in found["works"])]  # fmt: skip


def ratio(ours: Column, peer: Column, work: str) -> float | None:
    """Ours over the peer's, None where one of them has no number."""
    cells = [column["cells"].get(work, {}) for column in (ours, peer)]
    return cells[0]["rate"] / cells[1]["rate"] if all("rate" in cell for cell in cells) else None


def verdict(found: dict[str, Any], work: str, words: dict[str, str]) -> str:
    """Whether the work's target holds for Danlu in bfloat16."""
    peer, least = TARGETS[work]
    sides = {column["name"]: column for column in found["columns"]}
    both = TARGET_SIDE in sides and peer in sides
    seen = ratio(sides[TARGET_SIDE], sides[peer], work) if both else None
    state = words["unknown"] if seen is None else words["yes"] if seen >= least else words["no"]
    return f"≥ {least:g} × {peer}: {state}"


def ratio_rows(found: dict[str, Any], words: dict[str, str]) -> Rows:
    """Header and a row for each work and each of our formats."""
    ours = [column for column in found["columns"] if is_ours(column)]
    peers = [column for column in found["columns"] if not is_ours(column)]
    rows = [[words["work"], "Danlu", *(title(peer) for peer in peers), words["holds"]]]
    for work in found["works"]:
        for column in ours:
            ratios = [ratio(column, peer, work) for peer in peers]
            shown = ["–" if one is None else f"{one:.2f}" for one in ratios]
            target = verdict(found, work, words) if column["name"] == TARGET_SIDE else ""
            rows.append([words[work], column["name"].removeprefix("Danlu "), *shown, target])
    return rows


def detail_rows(found: dict[str, Any], words: dict[str, str]) -> Rows:
    """The whole call, the prompt alone, decoding alone, and the setting, for each side and work that has a number."""
    rows = [[words["work"], "side", "tokens/s", "prompt s", "decoding tokens/s", "setting", "as Danlu's"]]
    for work in found["works"]:
        for column in found["columns"]:
            cell = column["cells"].get(work, {})
            if "rate" in cell:
                prompt = f"{median(cell['prompt_seconds']):.2f}" if cell["prompt_seconds"] else "–"
                decoding = "–" if cell["decode_rate"] is None else f"{cell['decode_rate']:.0f}"
                speeds = [f"{cell['rate']:.0f}", prompt, decoding]
                rows.append([words[work], title(column), *speeds, cell["setting"], agreement(found, column, work)])
    return rows


def agreement(found: dict[str, Any], column: Column, work: str) -> str:
    """Tokens of the first answer until it differs from ours; 0 everywhere means that it computes another model."""
    ours = next((one["cells"].get(work, {}) for one in found["columns"] if is_ours(one)), {})
    if work == "sample-8" or "answers" not in ours:
        return "–"
    pairs = list(zip(ours["answers"][0], column["cells"][work]["answers"][0], strict=True))
    same = next((at for at, (one, other) in enumerate(pairs) if one != other), len(pairs))
    return f"{same} of {len(pairs)}"


def refusals(found: dict[str, Any], words: dict[str, str]) -> Iterator[str]:
    """Each reason once for a side, with the works that it kept from being done, or the settings that failed."""
    for column in found["columns"]:
        reasons: dict[str, list[str]] = {}
        for work, cell in column["cells"].items():
            failed = {name: one for name, one in column.get("trials", {}).get(work, {}).items() if isinstance(one, str)}
            if "refused" in cell:
                reasons.setdefault(cell["refused"], []).append(words[work])
            else:
                for setting, reason in failed.items():
                    reasons.setdefault(reason, []).append(setting)
        for reason, kept in reasons.items():
            yield f"{title(column)}, {', '.join(dict.fromkeys(kept))}: {reason}"


def intro(found: dict[str, Any], words: dict[str, str]) -> str:
    isa = found.get("isa", "")
    machine = f"{found['machine']}{words['limited'].format(isa=INSTRUCTIONS[isa]) if isa else ''}"
    return words["intro"].format(**found | {"machine": machine, "limit": f" ISA={isa}" if isa else ""})


def price(found: dict[str, Any]) -> list[str]:
    return [f"{dtype} {one['mean_kl']:.4f} ({one['same_choice']:.1%})" for dtype, one in found["price"].items()]


# ---- on the terminal ----------------------------------------------------------------------------------------------


def print_tables(found: dict[str, Any]) -> None:
    words, console = WORDS["en"], Console(width=None if Console().is_terminal else 200)
    if was_busy(found):
        console.print(f"[bold]{found['busy_percent']:.0f} % of the machine was busy: do not publish these numbers.[/]")
    console.print(intro(found, words), highlight=False)
    tables = {
        "tokens/s (number format)": speed_rows(found, words),
        "ratio, Danlu to peer": ratio_rows(found, words),
        "in detail; equal first tokens of the first answer": detail_rows(found, words),
    }
    for caption, (head, *rows) in tables.items():
        table = Table(title=caption, title_justify="left")
        for at, name in enumerate(head):
            table.add_column(name, justify="left" if at == 0 else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    positions = next((one["positions"] for one in found["price"].values()), 0)
    console.print(words["price"].format(positions=positions, list="; ".join(price(found))), highlight=False)
    for line in refusals(found, words):
        console.print(f"refused or failed: {line}", highlight=False)


# ---- in the documents ---------------------------------------------------------------------------------------------


def markdown(rows: Rows) -> str:
    head, *body = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows)
    return "\n".join([f"| {head} |", "|---" * len(rows[0]) + "|", *(f"| {row} |" for row in body)])


def block(found: dict[str, Any], language: str, *, short: bool) -> str:
    """The tables as markdown; the short form is the speeds, and where to find the rest is said by the file."""
    words = WORDS[language]
    positions = next((one["positions"] for one in found["price"].values()), 0)
    parts = [
        intro(found, words),
        markdown(speed_rows(found, words)),
        words["price"].format(positions=positions, list="; ".join(price(found))),
    ]
    if not short:
        chosen = {f"{title(column)} ({words[work]}): {cell['setting']}"
                  for column in found["columns"] if not is_ours(column)
                  for work, cell in column["cells"].items() if "setting" in cell}  # fmt: skip
        parts += [words["ratios"], markdown(ratio_rows(found, words))]
        parts += [words["settings"].format(list="; ".join(sorted(chosen)))] if chosen else []
        why = list(refusals(found, words))
        parts += [words["why"].format(list="; ".join(why))] if why else []
    return "\n\n".join(parts)


def put_block(text: str, block: str, start: str = START, end: str = END) -> str:
    """`text` with `block` between the marks. Raises ValueError if the marks are not there, once each and in order."""
    if text.count(start) != 1 or text.count(end) != 1 or text.index(end) < text.index(start):
        raise ValueError(f"the text needs one line '{start}' and after it one line '{end}'")
    before, rest = text.split(start)
    return f"{before}{start}\n\n{block}\n\n{end}{rest.split(end)[1]}"


def write_docs(found: dict[str, Any], root: Path) -> None:
    """Replace the block of README and docs/generation, in both languages; that of an instruction set in the latter."""
    isa = found.get("isa", "")
    marks = (
        (START.replace("bench-generate:", f"bench-generate {isa}:"), END.replace(":", f" {isa}:"))
        if isa
        else (START, END)
    )
    for name, language in (DOCS_FILES if isa else README_FILES | DOCS_FILES).items():
        path = root / name
        made = block(found, language, short=bool(isa) or name in README_FILES)
        path.write_text(put_block(path.read_text("utf-8"), made, *marks), "utf-8")
