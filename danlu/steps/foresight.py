"""What a training will hold, told before its first step and beside what it held at its end.

The arithmetic is plan/'s. Here a recipe, and the model and the examples that were read for it, become the job that it
counts. A training is refused where it cannot fit by more than the arithmetic was ever wrong; its own error names the
smallest change that would fit. Where memory only seems short, it is said and tried.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from danlu.device import Device, read_device
from danlu.errors import ConfigError, MemoryShortage, ModelError, size_in_words
from danlu.journal import Draft, Journal
from danlu.model.adapters import parameter_counts
from danlu.plan.configs import shape_from
from danlu.plan.fit import smallest_change
from danlu.plan.lora import ALL_LINEAR, count_lora
from danlu.plan.memory import Job, Memory, Method, estimate
from danlu.plan.programs import DANLU, DANLU_CPU
from danlu.plan.shapes import Shape
from danlu.plan.whole import Machine, keeps_no_scores
from danlu.recipe import TrainingSections
from danlu.steps.parts import Parts
from danlu.steps.prepare import as_trained
from danlu.steps.step import Show
from danlu.train.batches import Ordered

OFF = 0.15  # by so much the arithmetic may be wrong: what is asked of benchmarks/plan.py


def job_of(
    options: TrainingSections, shape: Shape, device: Device, tokens: int, longest: int, adds_up: bool | None = None
) -> Job:
    """The training that these options describe.

    Args:
        tokens: of its largest forward pass.
        longest: tokens of the longest text in it.
        adds_up: whether a step has several passes; by default, whether its examples may be more than one.
    """
    lora, train = options.lora, options.train
    dtype = str(device.dtype(as_trained(options.model, device).dtype)).removeprefix("torch.")
    return Job(
        shape,
        _method(options),
        batch=max(1, tokens // longest),
        length=min(longest, tokens),
        r=1 if lora is None else lora.r,
        targets=_targets(shape, lora),
        head=lora is not None and lora.head,
        dropout=0.0 if lora is None else lora.lora_dropout,
        optim=train.optim,
        dtype=dtype,
        checkpointing=train.gradient_checkpointing,
        adds_up=train.batch_size * longest > tokens if adds_up is None else adds_up,
        stored=_stored(options),
        has_logits=not _scores_answers(options),
        flash=keeps_no_scores(device.name, longest),
        program=DANLU_CPU if device.name == "cpu" else DANLU,
    )


def _targets(shape: Shape, lora: Any) -> Any:
    """The layers with an adapter; all of them where the recipe names them in a way that only a model can read."""
    if lora is None or lora.target_modules == ALL_LINEAR or isinstance(lora.target_modules, str):
        return ALL_LINEAR
    try:
        count_lora(shape, 1, lora.target_modules)
    except ConfigError:
        return ALL_LINEAR
    return lora.target_modules


def _method(options: TrainingSections) -> Method:
    if options.lora is None:
        return "full"
    return "qlora" if options.model.load_in_4bit else "lora"


def _stored(options: TrainingSections) -> str | None:
    """How frozen weights are held, where it is in 4 bits."""
    if not options.model.load_in_4bit:
        return None
    return "nf4-dq" if options.model.bnb_4bit_use_double_quant else "nf4"


def _scores_answers(options: TrainingSections) -> bool:
    """Whether a reward model is trained; what draws answers has a section of that name for its judge."""
    names = type(options).model_fields
    return "reward" in names and "rollout" not in names


def of_recipe(options: TrainingSections, shape: Shape, device: Device) -> Job:
    """The same before the data is read: every pass is as full, and every text as long, as the recipe lets it be."""
    most, longest = options.train.micro_batch_tokens, options.data.max_length
    tokens = longest if most == "auto" else most
    return job_of(options, shape, device, max(tokens, longest), longest)


def machine_of(card_bytes: float | None, name: str | None) -> tuple[Machine, str]:
    """(a card of so much memory, or this machine; the format that is trained in there)."""
    if card_bytes is not None:
        return Machine("cuda", card_bytes, name or ""), "bfloat16"
    device = read_device()
    dtype = str(device.dtype("auto")).removeprefix("torch.")
    kind: Literal["cpu", "cuda"] = "cpu" if device.name == "cpu" else "cuda"
    return Machine(kind, device.memory_bytes, device.card or "this machine", is_whole=False), dtype


def foresee(parts: Parts, draft: Draft, show: Show) -> None:
    """Tell what the training will hold beside what is free, and keep it for its end.

    Raises MemoryShortage for what cannot fit.
    """
    found = _job(parts)
    if isinstance(found, str):
        draft.event("memory", f"not foreseen: {found}")
        return
    job, longest = found
    memory, free = estimate(job), parts.device.memory_bytes
    taken = memory.total - memory.of("runtime")  # which is there already
    what = f"memory: {size_in_words(int(taken))} foreseen, {size_in_words(free)} free"
    show.say(what)
    if taken * (1 - OFF) > free:
        where = parts.device.card or parts.device.name
        raise MemoryShortage(
            f"the training would hold {size_in_words(int(taken))}, {size_in_words(free)} are free on {where}",
            fix=_fix(job, memory, free, longest),
        )
    if taken > free:
        show.say(f"that is more than there is, if the arithmetic is right: {_fix(job, memory, free, longest)}")
    parts_of = {part.name: int(part.bytes) for part in memory.parts}
    kept: dict[str, Any] = {"predicted": _comparable(memory, parts.device.name), "free": free, "moment": memory.moment}
    kept |= {"parts": parts_of, "batch": job.batch, "length": job.length, "adds_up": job.adds_up}
    draft.result("memory_plan", kept)
    draft.event("memory", what, **kept)


def most_foreseen(parts: Parts, memory_bytes: float, most: int) -> int:
    """Tokens of the largest forward pass of its longest texts that fits, up to `most`; 0 where that cannot be told."""
    found = _job(parts)
    if isinstance(found, str):
        return 0
    job, longest = found

    def fits(texts: int) -> bool:
        memory = estimate(replace(job, batch=texts))
        return memory.total - memory.of("runtime") <= memory_bytes

    low, high = 0, max(1, most // longest) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * longest


def _comparable(memory: Memory, device_name: str) -> int:
    """Of it, what a run measures: on a card what torch has allocated."""
    beside = memory.of("runtime") + memory.of("allocator") if device_name != "cpu" else 0
    return int(memory.total - beside)


def _job(parts: Parts) -> tuple[Job, int] | str:
    """(what is to be done, tokens of the longest example), or why that cannot be told."""
    model, train = parts.ready.model, parts.recipe.train
    if not isinstance(parts.batches, Ordered):
        return "answers are drawn while it trains"
    if parts.device.processes.size > 1:
        return "several processes train together"
    config = model.config.get_text_config()
    try:
        shape = shape_from(config.to_dict(), config.model_type)
    except ModelError as error:
        return error.seen
    trained, total = parameter_counts(model)
    own = total - (trained if parts.recipe.lora is not None else 0)
    if not _is_near(shape.parameters, own):
        shape = replace(shape, is_tied=True)  # one that scores answers has no head of its own
    if not _is_near(shape.parameters, own):
        return f"{config.model_type}: the model has other weights than its configuration says"
    lengths = [parts.stage.length(example) for example in parts.batches.longest(train.batch_size, parts.stage.length)]
    tokens = max(lengths[0], min(train.most_tokens, sum(lengths)))
    job = job_of(parts.recipe, shape, parts.device, tokens, lengths[0], adds_up=sum(lengths) > tokens)
    return replace(job, adapter_weights=None if job.method == "full" else trained), lengths[0]


def _is_near(one: int, other: int) -> bool:
    """But for a head of one number, and the like."""
    return abs(one - other) <= other / 1000


def _fix(job: Job, memory: Memory, free: int, longest: int) -> str:
    change = smallest_change(job, free + memory.of("runtime"), longest)
    if change is None:
        return "take a smaller model, or a machine with more memory"
    fits = size_in_words(int(change.memory.total - change.memory.of("runtime")))
    return f"{change.text}, which takes {fits}"


def tell_beside(journal: Journal, show: Show) -> None:
    """What was held, beside what was foreseen."""
    plan = journal.results().get("memory_plan")
    peaks = [row["peak_memory_bytes"] for row in journal.metrics() if "peak_memory_bytes" in row]
    if plan is None or not peaks:
        return
    predicted, measured = int(plan["predicted"]), max(peaks)
    off = predicted / measured - 1
    what = f"memory: {size_in_words(predicted)} foreseen, {size_in_words(measured)} held ({off:+.0%})"
    journal.result("memory_plan", {**plan, "measured": measured, "error": off})
    journal.event("memory", what, predicted=predicted, measured=measured)
    show.say(what)
