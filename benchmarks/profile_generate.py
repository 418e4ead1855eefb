"""Where the time of one decoding step goes, for greedy search of one row and of 32, and for eight beams.

    .venv/bin/python benchmarks/profile_generate.py [--dtype bfloat16] [--steps 32]

Timers around the three parts of a step (schedule, forward, choose) tell what it takes when nobody looks on. The
profiler then tells which operators the forward pass consists of; what its operators do not account for is python
and dispatch. Steps that read a prompt are left out.
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
from torch.profiler import profile, record_function

from danlu import Engine, GenerationParams
from danlu.data.stdlib import docstring_pairs
from danlu.generate.attend import Plan
from danlu.generate.core import Core
from danlu.generate.requests import Maker

SHOWN = ("greedy-1", "greedy-32", "beam")
PRODUCTS = ("mm", "linear", "matmul")  # parts of the names of operators that multiply matrices
PARTS = {"schedule": "next_work", "forward": "_forward", "choose": "_choose"}
WARM_UP = 4


class Stopwatch:
    """Seconds spent in each part of the steps, while it is on."""

    def __init__(self, core: Core) -> None:
        self.seconds: Counter[str] = Counter()
        for part, name in PARTS.items():
            owner = core.scheduler if part == "schedule" else core
            setattr(owner, name, self._timed(part, getattr(owner, name)))

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            with record_function(part):
                result = function(*arguments)
            self.seconds[part] += time.perf_counter() - started
            return result

        return timed


def mark_attention() -> None:
    """Let the profiler see where attention begins and ends."""
    attend = Plan.attend

    def marked(*arguments: Any) -> Any:
        with record_function("attention"):
            return attend(*arguments)

    Plan.attend = marked  # type: ignore[method-assign]


def part_of(event: Any) -> str | None:
    """What an operator of the forward pass belongs to; None for what ran outside, and for the marks themselves."""
    above, names = event, []
    while above is not None:
        names.append(above.name)
        above = above.cpu_parent
    if "forward" not in names or event.name in ("forward", "attention"):
        return None
    if "attention" in names:
        return "attention"
    return "matrix products" if any(word in event.name for word in PRODUCTS) else "norms and element-wise"


def operators(core: Core, steps: int) -> Counter[str]:
    """Seconds a step of the forward pass's operators."""
    with profile() as record:
        for _ in range(steps):
            core.step()
    seconds: Counter[str] = Counter()
    for event in record.events():
        if part := part_of(event):
            seconds[part] += event.self_cpu_time_total / 1e6 / steps
    return seconds


def measure(engine: Engine, prompts: list[list[int]], knobs: dict[str, Any], steps: int) -> dict[str, float]:
    """Seconds a step, by what they were spent on."""
    core = engine.core
    params = GenerationParams(max_new_tokens=2 * steps + WARM_UP + 8, eos_token_id=(), **knobs)
    maker = Maker(engine.chat, int(core.model.config.get_text_config().vocab_size))
    jobs = [maker.job(prompt, params) for prompt in prompts]
    for job in jobs:
        job.is_followed = False
        core.submit(job.request)
    while core.scheduler.waiting or core.scheduler.reading:
        core.step()
    for _ in range(WARM_UP):
        core.step()
    watch = Stopwatch(core)
    started = time.perf_counter()
    for _ in range(steps):
        core.step()
    whole = (time.perf_counter() - started) / steps
    parts = {part: seconds / steps for part, seconds in watch.seconds.items()}
    inside = operators(core, steps)
    for job in jobs:
        core.cancel(job.request)
    forward = parts.pop("forward")
    return {
        **{name: inside[name] for name in ("matrix products", "attention", "norms and element-wise")},
        "python and dispatch of the forward pass": forward - inside.total(),
        "scheduling": parts["schedule"],
        "choosing": parts["choose"],
        "the rest of the loop": whole - forward - sum(parts.values()),
        "a step": whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=32, help="decoding steps, once timed and once profiled")
    asked = parser.parse_args()
    mark_attention()
    text = "\n".join(message["content"] for pair in docstring_pairs("") for message in pair["messages"])
    found = {}
    for work in WORKS:
        if work.name in SHOWN:
            engine = Engine("smollm2-135m", dtype=asked.dtype)  # a new one each: the last one's timers stay with it
            ids = engine.token_ids(text[: 12 * work.prompts * work.prompt_tokens])
            size = work.prompt_tokens
            prompts = [ids[at * size : (at + 1) * size] for at in range(work.prompts)]
            found[work.name] = measure(engine, prompts, work.knobs, asked.steps)
    table = Table(title=f"milliseconds of a decoding step, {asked.dtype}", title_justify="left")
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right")
    for part in next(iter(found.values())):
        shown = [f"{one[part] * 1e3:.2f}  {one[part] / one['a step']:4.0%}" for one in found.values()]
        table.add_row(part, *shown, style="bold" if part == "a step" else "")
    Console().print(table)


if __name__ == "__main__":
    main()
