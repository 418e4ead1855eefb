"""A whole recipe from what the data, the model and the machine are: every value with its reason and its source.

What is chosen is where to start, not what is best: held-out loss decides. The file that comes out is complete, and
says of each line why it is so.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from danlu.errors import ConfigError, MemoryShortage, size_in_words
from danlu.native import has_compiler
from danlu.plan.fit import most_tokens
from danlu.plan.memory import Job, Memory, estimate
from danlu.plan.programs import DANLU, DANLU_CPU, Program
from danlu.plan.quantization import bits_by_notes
from danlu.plan.rate import Advice, Asked, Training, advise, as_rate, full_rate
from danlu.plan.shapes import Shape

NOTES = "the notes"
MANY_ROWS = 10_000  # from so many on the notes tune all weights, where the memory is there
USUAL_BATCH = 32
STEPS_WANTED = 20  # an epoch of fewer steps teaches little: the batch is smaller then
FEW_STEPS = 100  # fewer than that in an epoch: a second one, as the notes allow
MARGIN = 0.9  # of memory that a training may hold: what the arithmetic may be wrong by, about
HELD_OUT, MOST_HELD_OUT = 0.1, 200
STEP = 64  # lengths and passes are multiples of it
PASSES = {"cpu": 4096, "cuda": 16_384}  # more tokens at once make no pass faster
# What is allowed beyond lengths that were told from characters: a share, and what a chat template writes around turns.
SLACK, TEMPLATE = 1.5, 64


SHORT = 512  # texts up to that length keep their scores on a CPU without a compiler (model/company/attention.py)


def keeps_no_scores(device: str, length: int) -> bool:
    """Whether Danlu's attention under training makes scores again instead of keeping them."""
    return device != "cpu" or length > SHORT or has_compiler()


@dataclass(frozen=True)
class Found:
    """What is known of the data.

    Attributes:
        path: as it is named.
        training: what its rows are for.
        rows: usable ones.
        faulty: rows that are none.
        tokens, learnt: of all of them.
        p99, longest: tokens of a row.
        repeats: share of rows that repeat, or nearly repeat, an earlier one.
        is_estimated: whether tokens were told from characters.
    """

    path: str
    training: Training
    rows: int
    faulty: int
    tokens: int
    learnt: int
    p99: int
    longest: int
    repeats: float = 0.0
    is_estimated: bool = False


@dataclass(frozen=True)
class Machine:
    """Where it runs.

    Attributes:
        device: cpu or cuda.
        memory_bytes: of the card, or free in main memory.
        name: as it was asked for.
        is_whole: whether that is all memory of a card, of which its runtime takes a part.
    """

    device: Literal["cpu", "cuda"]
    memory_bytes: float
    name: str
    is_whole: bool = True

    @property
    def program(self) -> Program:
        return DANLU_CPU if self.device == "cpu" else DANLU


@dataclass(frozen=True)
class Choice:
    """A line of the recipe.

    Attributes:
        key: with its section, as train.learning_rate.
        value: as YAML has it.
        reason: why.
        source: who says so.
    """

    key: str
    value: str
    reason: str
    source: str = ""


@dataclass(frozen=True)
class Whole:
    """A recipe, and what it will hold."""

    choices: tuple[Choice, ...]
    job: Job
    memory: Memory
    notes: tuple[str, ...] = ()


def choose(found: Found, model: str, shape: Shape, machine: Machine, name: str, dtype: str = "bfloat16") -> Whole:
    """The recipe for so much data on this machine.

    Raises ConfigError for data that is too little, MemoryShortage where not even an adapter on 4-bit weights fits.
    """
    if found.rows < 4:
        raise ConfigError(
            f"{found.path}: {found.rows} usable rows", fix="bring at least a few dozen; hundreds are better"
        )
    held_out = max(1, min(MOST_HELD_OUT, int(found.rows * HELD_OUT)))
    rows = found.rows - held_out
    learnt = max(1, found.learnt * rows // found.rows)
    batch = _batch(rows)
    epochs = 1 if rows / batch >= FEW_STEPS else 2
    steps = max(1, math.ceil(rows / batch) * epochs)
    length = _length(found)
    base = Job(shape, "lora", length=length, dtype=dtype, adds_up=True, program=machine.program,
               flash=keeps_no_scores(machine.device, length))  # fmt: skip
    job, why = _method(base, found, machine, learnt, length)
    passes = _passes(job, machine, length)
    job = replace(job, batch=max(1, passes // length))
    choices = [
        *_head(found, model, name, held_out, length, job),
        *_adapter(job, found, shape, learnt, steps, why),
        *_training(job, found, shape, learnt, steps, batch, epochs, passes, rows),
    ]
    return Whole(tuple(choices), job, estimate(job), tuple(_remarks(found, shape)))


def _batch(rows: int) -> int:
    batch = USUAL_BATCH
    while batch > 4 and rows / batch < STEPS_WANTED:
        batch //= 2
    return batch


def _length(found: Found) -> int:
    longest = found.longest if found.longest <= 2 * found.p99 else found.p99
    if found.is_estimated:
        longest = math.ceil(SLACK * longest) + TEMPLATE
    return max(STEP, math.ceil(longest / STEP) * STEP)


def _room(machine: Machine) -> float:
    """What a training may take: on a card of all of it, else beside what runs already."""
    floor = machine.program.floor if not machine.is_whole else 0
    return machine.memory_bytes * MARGIN + floor


def _method(base: Job, found: Found, machine: Machine, learnt: int, length: int) -> tuple[Job, str]:
    """(how it is trained, why)."""
    room = _room(machine)

    def need(job: Job) -> str:
        return size_in_words(int(estimate(job).total))

    full = replace(base, method="full")
    for job in (full, replace(full, checkpointing=True)):
        if found.rows >= MANY_ROWS and estimate(job).total <= room:
            return job, f"{found.rows:,} rows, and all weights fit: {need(job)} of {machine.name}"
    asked = Asked(base.shape, found.training, learnt)
    r = int(next(advice for advice in advise(asked) if advice.option == "lora.r").value)
    why = f"{found.rows:,} rows are under {MANY_ROWS:,}"
    if found.rows >= MANY_ROWS:
        why = f"all weights would take {need(replace(full, checkpointing=True))}"
    adapters = [replace(base, r=r), replace(base, r=r, checkpointing=True), replace(base, r=8, checkpointing=True)]
    for job in adapters:
        if estimate(job).total <= room:
            return job, why
    for job in (replace(one, method="qlora") for one in adapters):
        if estimate(job).total <= room:
            return job, why
    raise MemoryShortage(
        f"an adapter on {base.shape.name} takes {need(replace(adapters[-1], method='qlora'))} at {length:,} tokens, "
        f"its weights in 4 bits; {machine.name} has {size_in_words(int(machine.memory_bytes))}",
        fix="take a smaller model or shorter texts (danlu plan fit tells what fits)",
    )


def _passes(job: Job, machine: Machine, length: int) -> int:
    """Tokens of a forward pass."""
    fits = most_tokens(replace(job, flash=True), _room(machine))
    return max(length, min(PASSES[machine.device], fits) // STEP * STEP)


def _head(found: Found, model: str, name: str, held_out: int, length: int, job: Job) -> Iterator[Choice]:
    yield Choice("kind", found.training, _KINDS[found.training])
    yield Choice("name", _quoted(name), "the run directory is runs/NAME")
    yield Choice("model.name", _quoted(model), "as it was asked for")
    if job.method == "qlora":
        whole = size_in_words(int(estimate(replace(job, method="lora")).total))
        why = f"in 16 bits they would take the training to {whole}"
        yield Choice("model.load_in_4bit", "true", why, f"QLoRA, Dettmers et al. 2023; {NOTES}: where memory is short")
    yield Choice("data.path", _quoted(found.path), f"{found.rows:,} usable rows, about {found.tokens:,} tokens")
    if found.faulty:
        yield Choice(
            "data.on_error", "skip", f"{found.faulty:,} rows are faulty: they are counted, listed, and left out"
        )
    share = f"{held_out / found.rows:.0%}"
    yield Choice(
        "data.held_out", str(held_out), f"{share} of the rows are kept aside: the proof is on what was not seen"
    )
    how = "; more is allowed, because tokens were told from characters" if found.is_estimated else ""
    yield Choice("data.max_length", str(length), f"99 of 100 rows have {found.p99:,} tokens at most, the longest "
                 f"{found.longest:,}{how}")  # fmt: skip
    if length < found.longest or found.is_estimated:
        cut = "window" if found.training == "pretrain" else "skip"
        why = "longer texts are cut into windows" if cut == "window" else "the few longer rows are left out, not cut"
        yield Choice("data.too_long", cut, why)


_KINDS: dict[Training, str] = {
    "sft": "the rows have answers to imitate",
    "pretrain": "the rows are plain texts: further pre-training comes before any tuning on answers",
    "dpo": "the rows have a better and a worse answer; DPO needs no reward model and less memory than PPO",
    "reward": "the rows have a better and a worse answer",
    "ppo": "the rows are prompts alone",
}


def _adapter(job: Job, found: Found, shape: Shape, learnt: int, steps: int, why: str) -> Iterator[Choice]:
    if job.method == "full":
        yield Choice("lora", "null", f"all weights are trained: {why}", f"{NOTES}: full tuning from 10k rows on")
        return
    advised = {one.option: one for one in advise(Asked(shape, found.training, learnt, steps))}
    rank = advised["lora.r"]
    reason = f"{_said(rank)}; {why}"
    if rank.value != job.r:
        reason = f"{rank.value} was advised and does not fit"
    yield Choice("lora.r", str(job.r), reason, f"{rank.source}; {NOTES}: {rank.notes}")
    again = advise(Asked(shape, found.training, learnt, steps, r=job.r))
    for option in ("lora.lora_alpha", "lora.target_modules", "lora.lora_dropout"):
        one = next(advice for advice in again if advice.option == option)
        yield Choice(option, one.shown, _said(one), _sources(one))


def _training(
    job: Job, found: Found, shape: Shape, learnt: int, steps: int, batch: int, epochs: int, passes: int, rows: int
) -> Iterator[Choice]:
    yield _rate(job, found, shape, learnt, steps)
    yield Choice("train.lr_scheduler_type", "linear", "with a warmup, to zero", NOTES)
    yield Choice("train.warmup_ratio", "0.1", "large first steps do harm", NOTES)
    yield Choice("train.weight_decay", "0.01", "beside AdamW's rate", NOTES)
    if found.training != "pretrain":
        why = (
            "the usual one" if batch == USUAL_BATCH else f"of {rows:,} rows, so that an epoch has {rows // batch} steps"
        )
        yield Choice("train.batch_size", str(batch), why, f"{NOTES}: 32")
    often = "one pass: more over the same data overfit" if epochs == 1 else f"an epoch is under {FEW_STEPS} steps"
    yield Choice("train.num_train_epochs", str(epochs), often, f"{NOTES}: 1, try 2")
    why = "what fits in one pass; the result stays the same"
    if passes in PASSES.values():
        why = "more at once is no faster"
    yield Choice("train.micro_batch_tokens", str(passes), why, "danlu plan memory")
    twice = "true" if job.checkpointing else "false"
    why = "without it, it does not fit; a third more time" if job.checkpointing else "it fits without"
    yield Choice("train.gradient_checkpointing", twice, why, "danlu plan memory")


def _rate(job: Job, found: Found, shape: Shape, learnt: int, steps: int) -> Choice:
    key = "train.learning_rate"
    if job.method == "full":
        rate = full_rate(shape.parameters, found.training)
        return Choice(key, as_rate(rate), "a tenth of an adapter's", "tinker-cookbook 2026; the notes: about 1e-4")
    one = next(
        advice for advice in advise(Asked(shape, found.training, learnt, steps, r=job.r)) if advice.option == key
    )
    return Choice(key, one.shown, _said(one), _sources(one))


def _said(advice: Advice) -> str:
    return advice.reason.format(**dict(advice.values))


def _sources(advice: Advice) -> str:
    return "; ".join(part for part in (advice.source, f"{NOTES}: {advice.notes}") if part)


def _remarks(found: Found, shape: Shape) -> Iterator[str]:
    """What no key says."""
    if found.repeats > 0.05:
        yield f"{found.repeats:.0%} of the rows repeat earlier ones, or nearly: leave them out (danlu data check)"
    if found.rows < 200:
        yield "so few rows teach a form, and hardly a subject: look at the answers in the report, not at the loss alone"
    bits = bits_by_notes(shape.parameters, 0.03)
    lossless = bits_by_notes(shape.parameters, 0.001)
    yield (
        f"to serve it: {lossless} bit where nothing may be lost, {bits} bit where 2 to 3 % may (the notes; "
        "danlu plan bits says where published figures disagree)"
    )


def _quoted(text: str) -> str:
    """As YAML reads it back: plain where that is safe, which it is for few things."""
    return json.dumps(text, ensure_ascii=False)


def written(whole: Whole, command: str) -> str:
    """The recipe as YAML, a comment above each key."""
    lines = [f"# Made by: {command}", *(f"# {remark}" for remark in whole.notes)]
    lines.append(
        f"# It will hold about {size_in_words(int(whole.memory.total))}, {whole.memory.moment}. "
        "Run it: danlu run THIS_FILE"
    )
    section = ""
    for choice in whole.choices:
        place, _, key = choice.key.rpartition(".")
        if place != section:
            lines += [f"{place}:"] if place else []
            section = place
        indent = "  " if place else ""
        source = f" ({choice.source})" if choice.source else ""
        lines += [*_comment(f"{choice.reason}{source}", indent), f"{indent}{key}: {choice.value}"]
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str, width: int = 110) -> Sequence[str]:
    return textwrap.wrap(text, width, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
