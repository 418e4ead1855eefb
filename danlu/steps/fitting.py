"""`micro_batch_tokens: auto`: the largest forward pass that fits, tried before a run begins.

Tried in a process of its own, with the longest examples, a whole optimizer step (its state is made at the first) and
a look at held-out ones: a shortage then ends that process, and not the run; Linux is told to kill it first. It begins
where memory is foreseen to end (foresight.py), doubles the tokens of a pass until it is short, and then halves what
lies between. On a CPU what it may hold is bounded by
the memory that this process may take, less a margin, so that nothing is swapped out.

The batch of a step stays what it is: passes are added up.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from danlu import errors
from danlu.device import Device, PeakMemory, is_out_of_memory, read_device, release_memory
from danlu.errors import ConfigError, DanluError, size_in_words
from danlu.journal import Draft, Journal
from danlu.recipe import TrainingRecipe
from danlu.steps.foresight import most_foreseen
from danlu.steps.parts import Parts, Prepare
from danlu.steps.step import Quiet, Show
from danlu.train.batches import Ordered
from danlu.train.learner import Learner
from danlu.train.master import Master

MARGIN = 0.1  # of free memory that stays free
MOST = 16_384  # tokens: more at once make no pass faster
CLOSE = 1.15  # what fits is found up to that
LOOK_SECONDS = 0.02  # between two looks at what the other process holds


@dataclass(frozen=True)
class Tried:
    """One size.

    Attributes:
        tokens: of the pass.
        peak: memory in bytes at its highest; None where it did not fit.
    """

    tokens: int
    peak: int | None


def with_micro_batch(
    recipe: TrainingRecipe, prepare: Prepare, draft: Draft, device: Device, show: Show
) -> TrainingRecipe:
    """The recipe with a number in place of `auto`; a run that is resumed keeps its own.

    Raises what preparing raises, and ConfigError where not even the longest example fits.
    """
    if recipe.train.micro_batch_tokens != "auto":
        return recipe
    known = Journal(recipe.directory).results().get("micro_batch") if recipe.resume else None
    if known is None:
        show.say("trying how many tokens fit into a forward pass")
        known = _found(recipe, prepare, device)
        draft.event("micro-batch", "the largest that fits, tried with the longest examples", **known)
        show.say(f"micro-batches of {known['tokens']:,} tokens, of {size_in_words(known['free'])} that are free")
    draft.result("micro_batch", known)
    train = recipe.train.model_copy(update={"micro_batch_tokens": int(known["tokens"])})
    return recipe.model_copy(update={"train": train})


def _found(recipe: TrainingRecipe, prepare: Prepare, device: Device) -> dict[str, Any]:
    allowed = int(device.memory_bytes * (1 - MARGIN))
    tried = list(_tries(recipe, prepare, None, allowed, device))
    low = max((one.tokens for one in tried if one.peak is not None), default=0)
    high = min((one.tokens for one in tried if one.peak is None), default=0)
    if not low:
        raise ConfigError(
            f"train.micro_batch_tokens=auto: one step with the longest example, {high} tokens, does not fit into "
            f"{size_in_words(allowed)}",
            fix="lower data.max_length, set train.gradient_checkpointing=true, or take a smaller model",
        )
    while high > low * CLOSE:
        middle = (low + high) // 2
        one = next(iter(_tries(recipe, prepare, [middle], allowed, device)))
        tried.append(one)
        low, high = (middle, high) if one.peak is not None else (low, middle)
    sizes = [{"tokens": one.tokens, "peak": one.peak} for one in tried]
    return {"tokens": low, "free": device.memory_bytes, "allowed": allowed, "tried": sizes}


def _tries(
    recipe: TrainingRecipe, prepare: Prepare, sizes: Sequence[int] | None, allowed: int, device: Device
) -> Iterator[Tried]:
    """What another process says of these sizes, or of all until one does not fit."""
    command = [sys.executable, "-c", "from danlu.steps.fitting import child; child()"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        pickle.dump((recipe, prepare, sizes), process.stdin)
        process.stdin.close()
        watched = psutil.Process(process.pid) if device.name == "cpu" else None
        asked = 0
        for line in _lines(process, watched, allowed):
            said = json.loads(line)
            if "fault" in said:
                raise getattr(errors, said["kind"])(said["fault"], allowed=said["allowed"], fix=said["fix"])
            asked = said["tokens"]
            if "peak" in said and (said["peak"] <= allowed or watched is None):
                yield Tried(asked, said["peak"])
                asked = 0
            elif "peak" in said:  # between two looks
                break
        if asked:
            yield Tried(asked, None)
        elif code := process.wait():
            why = (
                f"the model does not fit into {size_in_words(allowed)}" if code < 0 else f"the trial ended with {code}"
            )
            raise ConfigError(
                f"train.micro_batch_tokens=auto: {why}",
                fix="take a smaller model, or give a number, such as train.micro_batch_tokens=4096",
            )
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _lines(process: subprocess.Popen[bytes], watched: psutil.Process | None, allowed: int) -> Iterator[bytes]:
    """What it says, until it ends; it is ended where it holds more than it may."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    rest = b""
    while True:
        is_over = process.poll() is not None
        rest += process.stdout.read() or b""
        *lines, rest = rest.split(b"\n")
        yield from lines
        if is_over:
            return
        if watched is not None and _resident(watched) > allowed:
            process.kill()
        time.sleep(LOOK_SECONDS)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it has ended
        return 0


# -- in the other process --------------------------------------------------------------------------------


def child() -> None:
    """Try the sizes that standard input names; a line of JSON before and after each."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    _be_killed_first()
    recipe, prepare, sizes = pickle.load(sys.stdin.buffer)
    train = recipe.train.model_copy(update={"micro_batch_tokens": MOST})
    try:
        with Draft() as draft:
            parts = prepare(recipe.model_copy(update={"train": train, "resume": False}), draft, read_device(), Quiet())
            _try_all(parts, sizes, out)
    except DanluError as error:
        _tell(out, kind=type(error).__name__, fault=error.seen, allowed=error.allowed, fix=error.fix)


def _be_killed_first() -> None:
    """Where memory runs out before anybody looks, the kernel takes this process."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _tell(out: IO[str], **said: Any) -> None:
    print(json.dumps(said), file=out, flush=True)


def _try_all(parts: Parts, sizes: Sequence[int] | None, out: IO[str]) -> None:
    assert isinstance(parts.batches, Ordered)  # recipes of others refuse `auto`
    length = parts.stage.length
    step = parts.batches.longest(parts.recipe.train.batch_size, length)
    held_out = sorted(parts.held_out, key=length, reverse=True)
    peak = PeakMemory(parts.device.name)
    with Master(parts.ready.model, parts.recipe.seed, copies=parts.recipe.train.holds_copies) as master:
        for tokens in sizes or _sizes(length(step[0]), sum(map(length, step)), _guess(parts)):
            _tell(out, tokens=tokens)
            release_memory()
            peak.begin()
            try:
                _one(parts, master, [_within(some, length, tokens) for some in (step, held_out)], tokens)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                return
            _tell(out, tokens=tokens, peak=peak.bytes())


def _one(parts: Parts, master: Master, some: Sequence[Sequence[Any]], tokens: int) -> None:
    options, most = parts.recipe.train, parts.recipe.train.per_device_train_batch_size
    learner = Learner(parts.stage, parts.ready.model, master, options, tokens, parts.device, most=most)
    step, held_out = some
    learner.gradient(step)
    learner.apply(0.0, 1)
    if held_out:
        learner.look(held_out)


def _within(examples: Sequence[Any], length: Any, tokens: int) -> list[Any]:
    """The longest examples that make one pass; one at least."""
    chosen: list[Any] = []
    room = tokens
    for example in examples:
        if chosen and length(example) > room:
            break
        chosen.append(example)
        room -= length(example)
    return chosen


def _guess(parts: Parts) -> int:
    return most_foreseen(parts, parts.device.memory_bytes * (1 - MARGIN), MOST)


def _sizes(longest: int, of_step: int, guess: int) -> list[int]:
    """The longest example, what is foreseen to fit, less and more by what that may be wrong, and from there on twice as
    much each time, up to a whole step's tokens; without a guess, twice as much from the start."""
    most, sizes = max(longest, min(of_step, MOST)), [longest]
    near = [size for size in (guess * 4 // 5, guess * 11 // 10) if size > longest]
    while sizes[-1] < most:
        sizes.append(min(near.pop(0) if near else 2 * sizes[-1], most))
    return sizes
