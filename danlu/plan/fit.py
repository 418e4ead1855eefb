"""What can be done with a model in so much memory, the largest undertaking first; and the smallest change that fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from danlu.plan.memory import Job, Memory, Method, estimate
from danlu.plan.programs import DANLU, Program
from danlu.plan.shapes import Shape

LONGEST = 2**20  # tokens: nobody asks for more
FEW_BITS = {"int8": "8", "int4": "4"}


@dataclass(frozen=True)
class Way:
    """Something that can be done.

    Attributes:
        job: it, with one text of the length that was asked for.
        memory: what that takes.
        most: tokens of one text that fit; 0 where not even one does.
    """

    job: Job
    memory: Memory
    most: int

    def fits(self) -> bool:
        return self.most >= self.job.length

    @property
    def name(self) -> str:
        """In few words, all of which the command line translates."""
        job = self.job
        if job.method == "inference":
            return "answering, {bits} bit"
        parts = {"full": "all weights", "lora": "LoRA", "qlora": "QLoRA"}[job.method]
        return (
            parts
            + (", 8-bit AdamW" if job.optim == "adamw_8bit" else "")
            + (", checkpointing" if job.checkpointing else "")
        )

    @property
    def bits(self) -> str:
        return FEW_BITS.get(self.job.frozen, f"{8 * self.job.number:g}")


def ways(shape: Shape, memory_bytes: float, length: int, r: int = 8, program: Program = DANLU) -> list[Way]:
    """All of them, the largest first; those that do not fit as well."""
    return [
        Way(job, estimate(job), most_tokens(job, memory_bytes))
        for job in _jobs(Job(shape, length=length, r=r, program=program))
    ]


def _jobs(base: Job) -> Iterator[Job]:
    full = replace(base, method="full")
    yield full
    yield replace(full, checkpointing=True)
    yield replace(full, checkpointing=True, optim="adamw_8bit")
    adapters: tuple[Method, Method] = ("lora", "qlora")
    for method in adapters:
        yield replace(base, method=method)
        yield replace(base, method=method, checkpointing=True)
    for stored in (None, "int8", "int4"):
        yield replace(base, method="inference", stored=stored)


def most_tokens(job: Job, memory_bytes: float) -> int:
    """Tokens of one text that fit; 0 where not even one does."""

    def fits(length: int) -> bool:
        return estimate(replace(job, batch=1, length=length)).total <= memory_bytes

    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= LONGEST and fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 256):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return min(low, LONGEST)


@dataclass(frozen=True)
class Change:
    """A change of a recipe that makes it fit.

    Attributes:
        text: as it is written on a command line; nothing where none helps.
        memory: what is taken then.
    """

    text: str
    memory: Memory


def smallest_change(job: Job, memory_bytes: float, longest: int) -> Change | None:
    """The first that fits, of those that change the least: first what changes no result.

    Args:
        longest: tokens of the longest example, which no pass can be cut below.
    """
    for text, changed in _changes(job, longest):
        memory = estimate(changed)
        if memory.total <= memory_bytes:
            return Change(text, memory)
    return None


def _changes(job: Job, longest: int) -> Iterator[tuple[str, Job]]:
    tokens = job.tokens // 2
    while tokens >= longest:
        yield f"train.micro_batch_tokens={tokens}", replace(job, batch=1, length=tokens)
        tokens //= 2
    least = replace(job, batch=1, length=min(longest, job.tokens))
    cut = f"train.micro_batch_tokens={least.length}"
    twice = replace(job, checkpointing=True)
    if not job.checkpointing:
        yield "train.gradient_checkpointing=true", twice
        yield f"train.gradient_checkpointing=true {cut}", replace(least, checkpointing=True)
    least = replace(least, checkpointing=True)
    if job.method == "full":
        if job.optim == "adamw_torch":
            yield f"train.optim=adamw_8bit train.gradient_checkpointing=true {cut}", replace(least, optim="adamw_8bit")
        yield f"lora={{}} train.gradient_checkpointing=true {cut}", replace(least, method="lora")
    while least.length > 64:
        least = replace(least, length=least.length // 2)
        cut = f"data.max_length={least.length} data.too_long=truncate"
        yield f"{cut} train.gradient_checkpointing=true train.micro_batch_tokens={least.length}", least
