"""Where the time of generation goes: of one decoding step, and of reading the prompts.

    .venv/bin/python benchmarks/profile_generate.py [--dtype bfloat16] [--new_tokens 64]

Timers around the parts of a step; what they do not account for of the forward pass is python between them. A step in
which prompts are read counts as reading. Where there are few tokens, what lies between two attentions is one call.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from generation_sides import WORKS
from rich.console import Console
from rich.table import Table

from danlu import Engine, GenerationParams
from danlu.data.stdlib import docstring_pairs
from danlu.generate.batch import core as core_module
from danlu.generate.batch.attend import Plan
from danlu.generate.batch.core import Core
from danlu.model.lean.lean import LeanDecoder

SHOWN = ("greedy-1", "greedy-32", "beam")
FORWARD = "the whole forward pass"
INSIDE = ("between attentions", "products of the layers", "the head", "attention", "norms and rotation")
BESIDE = ("scheduling", "choosing")


class Stopwatch:
    """Seconds of each part, apart for steps that read prompts and for the others."""

    def __init__(self) -> None:
        self.seconds: Counter[tuple[bool, str]] = Counter()
        self.steps: Counter[bool] = Counter()
        self.is_reading = False

    def around(self, owner: Any, name: str, part: str) -> None:
        """Time an attribute's calls from now on."""
        setattr(owner, name, self.timed(getattr(owner, name), part))

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments, **named)
            self.seconds[self.is_reading, part] += time.perf_counter() - started
            return result

        return timed

    def around_steps(self, core: Core) -> None:
        step = core.step

        def timed() -> None:
            self.is_reading = bool(core.scheduler.waiting or core.scheduler.reading)
            self.steps[self.is_reading] += 1
            started = time.perf_counter()
            step()
            self.seconds[self.is_reading, "a step"] += time.perf_counter() - started

        core.step = timed  # type: ignore[method-assign]

    def milliseconds(self, is_reading: bool) -> dict[str, float]:
        """Of reading, in all; else of one step."""
        divisor = 1 if is_reading else self.steps[False]
        parts = {part: 1e3 * self.seconds[is_reading, part] / divisor for part in (*INSIDE, FORWARD, *BESIDE, "a step")}
        whole, forward = parts.pop("a step"), parts.pop(FORWARD)
        inside = {part: parts[part] for part in INSIDE}
        python = {"python of the forward pass": forward - sum(inside.values())}
        beside = {part: parts[part] for part in BESIDE}
        rest = {"the rest of the loop": whole - forward - sum(beside.values())}
        return inside | python | beside | rest | {"all": whole}


def watched(engine: Engine) -> Stopwatch:
    watch, core, decoder = Stopwatch(), engine.core, engine.core.decoder
    if not isinstance(decoder, LeanDecoder):
        raise SystemExit(f"no lean forward pass for {type(decoder).__name__}: its parts cannot be told apart")
    for layer in decoder.layers:
        for block, names in ((layer.mixer, ("qkv", "out")), (layer.mlp, ("gated_up", "down"))):
            for name in names:
                watch.around(block, name, "products of the layers")
        for owner, name in ((layer, "before_mixer"), (layer, "before_mlp"), (layer.mixer, "rotate")):
            watch.around(owner, name, "norms and rotation")
    if decoder.few is not None:
        decoder.few.gaps = [watch.timed(gap, "between attentions") for gap in decoder.few.gaps]
    watch.around(decoder, "head", "the head")
    watch.around(core, "_forward", FORWARD)
    watch.around(core.scheduler, "next_work", "scheduling")
    watch.around(core, "_choose", "choosing")
    watch.around_steps(core)
    return watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--new_tokens", type=int, default=64)
    asked = parser.parse_args()
    text = "\n".join(message["content"] for pair in docstring_pairs("") for message in pair["messages"])
    attend, likeliest = Plan.attend, core_module._likeliest
    steps, reading = {}, {}
    for work in [work for work in WORKS if work.name in SHOWN]:
        engine = Engine("smollm2-135m", dtype=asked.dtype, prefix_cache=False)
        ids, size = engine.token_ids(text[: 12 * work.prompts * work.prompt_tokens]), work.prompt_tokens
        prompts = [ids[at * size : (at + 1) * size] for at in range(work.prompts)]
        params = GenerationParams(max_new_tokens=asked.new_tokens, eos_token_id=(), **work.knobs)
        engine.generate(prompts, params)
        Plan.attend, core_module._likeliest = attend, likeliest
        watch = watched(engine)
        watch.around(Plan, "attend", "attention")
        watch.around(core_module, "_likeliest", "choosing")
        engine.generate(prompts, params)
        engine.close()  # its last step has ended as well
        steps[work.name], reading[work.name] = watch.milliseconds(False), watch.milliseconds(True)
    show(f"milliseconds of a decoding step, {asked.dtype}", steps)
    show(f"milliseconds of reading all prompts, {asked.dtype}", reading)


def show(title: str, found: dict[str, dict[str, float]]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right")
    for part in next(iter(found.values())):
        shown = [f"{one[part]:.2f}  {one[part] / one['all']:4.0%}" for one in found.values()]
        table.add_row(part, *shown, style="bold" if part == "all" else "")
    Console().print(table)


if __name__ == "__main__":
    main()
