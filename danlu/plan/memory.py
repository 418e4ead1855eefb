"""Memory of a training, or of answering, part by part: arithmetic from a model's shape and a program's habits.

The notes have one rule: 16 bits are 2 bytes a weight. It stands as the first part, and what comes on top below it.
The most is held at one of two moments: where the loss is known and nothing was given back yet (long texts, adapters),
or where the last gradients are made (all weights of a large model). The larger one is told.

What a run has measured is told beside it by whoever ran it; constants of this arithmetic are checked against published
figures by benchmarks/plan.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from danlu.errors import ConfigError
from danlu.plan.cache import cache_bytes
from danlu.plan.lora import ALL_LINEAR, LoraCount, count_lora
from danlu.plan.programs import DANLU, Program
from danlu.plan.shapes import HEADS, INSIDE, Layer, Shape

Method = Literal["full", "lora", "qlora", "inference"]
# Bytes of a weight by its format. nf4: 4 bits, and a scale for 64 weights in float32; nf4-dq: that scale in 8 bits, and
# its own in float32 for 256 of them (Dettmers et al. 2023, section 3). int8, int4: the engine's.
STORED: Mapping[str, float] = {
    "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1 + 4 / 576, "int4": 0.5 + 8 / 64,
    "nf4": 0.5 + 4 / 64, "nf4-dq": 0.5 + 1 / 64 + 4 / 64 / 256,
}  # fmt: skip
# Means that an optimizer keeps of each weight, and their bytes where they are not the program's own.
OPTIMIZERS: Mapping[str, tuple[int, float]] = {
    "adamw_torch": (2, 0), "adamw_bf16": (2, 2), "adamw_8bit": (2, 1 + 4 / 256), "paged_adamw_8bit": (2, 1 + 4 / 256),
    "paged_adamw_32bit": (2, 4), "sgd": (1, 0), "none": (0, 0),
}  # fmt: skip
ROUNDED = "adamw_bf16"  # whose weights have no copies, nor their gradients
EIGHT_BITS = ("adamw_8bit", "paged_adamw_8bit")
# Where no kernel takes them: a norm keeps a float32 copy of what it reads, and a gate what its activation makes.
PLAIN_NORM, PLAIN_GATE = 4, 3
ROUTED = 2  # copies of what experts read, sorted by them


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        method: full trains all weights, lora an adapter, qlora an adapter on weights in 4 bits; inference trains none.
        batch, length: texts of one forward pass, and tokens of each; of inference, texts and tokens in the cache.
        r, targets, head: of the adapter.
        dtype: of the weights, and of what is computed.
        stored: of frozen weights, where it is another: int8, int4, nf4, nf4-dq.
        checkpointing: whether blocks compute their inside a second time instead of keeping it.
        adds_up: whether a step has several passes, so that gradients stand while the next one goes.
        flash: whether attention keeps no matrix of scores.
        kv_dtype: of keys and values in the cache.
        in_backward: whether the optimizer takes each gradient as it is made.
        has_logits: whether scores of all tokens are made; a model that scores answers makes none.
        adapter_weights: of the adapter, where they were counted in the model itself.
    """

    shape: Shape
    method: Method = "lora"
    batch: int = 1
    length: int = 2048
    r: int = 8
    targets: str | Sequence[str] = ALL_LINEAR
    head: bool = False
    dropout: float = 0.05
    optim: str = "adamw_torch"
    dtype: str = "bfloat16"
    stored: str | None = None
    checkpointing: bool = False
    adds_up: bool = False
    flash: bool = True
    kv_dtype: str | None = None
    in_backward: bool = False
    has_logits: bool = True
    adapter_weights: int | None = None
    program: Program = DANLU

    def __post_init__(self) -> None:
        for name, value in {"batch": self.batch, "length": self.length}.items():
            if value < 1:
                raise ConfigError(f"{name}={value}", allowed="1 or more")
        for name, chosen, known in (
            ("dtype", self.dtype, [name for name in STORED if name.startswith(("float", "bfloat"))]),
            ("stored", self.stored, list(STORED)),
            ("kv_dtype", self.kv_dtype, ["float32", "bfloat16", "float16", "int8"]),
            ("optim", self.optim, list(OPTIMIZERS)),
        ):
            if chosen is not None and chosen not in known:
                raise ConfigError(f"{name}={chosen}", allowed=", ".join(known))

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def number(self) -> float:
        """Bytes of a number that is computed with."""
        return STORED[self.dtype]

    @property
    def frozen(self) -> str:
        """How frozen weights of linear layers are stored."""
        return self.stored or ("nf4-dq" if self.method == "qlora" else self.dtype)

    @property
    def stays_quantized(self) -> bool:
        """Whether files in few bits are answered with as they are."""
        return self.method == "inference" and self.stored is None and self.shape.held > 0

    @property
    def lora(self) -> LoraCount | None:
        if self.method not in ("lora", "qlora"):
            return None
        return count_lora(self.shape, self.r, self.targets, self.head)


@dataclass(frozen=True)
class Part:
    """Of the memory.

    Attributes:
        name: what it is.
        bytes: how much.
        why: how it is counted; `values` stand in it by name.
    """

    name: str
    bytes: float
    why: str = ""
    values: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Memory:
    """Attributes:
    parts: of it, at the moment at which most is held.
    moment: which one that is.
    """

    parts: tuple[Part, ...]
    moment: str

    @property
    def total(self) -> float:
        return sum(part.bytes for part in self.parts)

    def of(self, name: str) -> float:
        """Bytes of the part of that name; 0 where there is none."""
        return sum(part.bytes for part in self.parts if part.name == name)


AT_LOSS = "where the loss is known"
AT_END = "where the last gradients are made"
ANSWERING = "with a full cache"


def estimate(job: Job) -> Memory:
    """The memory of `job` at its highest, by part."""
    if job.method == "inference":
        return _closed(_weights(job) + _answering(job), job, ANSWERING)
    standing = _weights(job) + _trained(job)
    at_loss, at_end = _at_loss(job), _at_end(job)
    first, second = (sum(part.bytes for part in parts) for parts in (at_loss, at_end))
    chosen, moment = (at_loss, AT_LOSS) if first >= second else (at_end, AT_END)
    return _closed(standing + chosen, job, moment)


def rule_of_notes(shape: Shape) -> float:
    """Two bytes a weight."""
    return 2.0 * shape.parameters


def _closed(parts: list[Part], job: Job, moment: str) -> Memory:
    program = job.program
    held = sum(part.bytes for part in parts)
    extra = [
        Part(
            "allocator", program.slack * held, "{share} of what is allocated lies in holes", _of(f"{program.slack:.0%}")
        ),
        Part("tokenizer", program.word * job.shape.vocabulary, "in main memory, where the model is as well"),
        Part("runtime", program.floor, "with nothing loaded"),
    ]
    return Memory(tuple(part for part in [*parts, *extra] if part.bytes > 0), moment)


def _of(share: str) -> tuple[tuple[str, str], ...]:
    return (("share", share),)


# -- what stands all the time ----------------------------------------------------------------------------


def _weights(job: Job) -> list[Part]:
    """The weights, as they are stored. The notes' rule is the sum for 16 bits."""
    shape, number = job.shape, job.number
    frozen = shape.held if job.stays_quantized else STORED[job.frozen]
    if job.method == "full" or (job.frozen == job.dtype and not job.stays_quantized):
        return [Part("weights", shape.parameters * number, "{bytes} bytes a weight", (("bytes", f"{number:g}"),))]
    engines = job.frozen in ("int8", "int4")
    matrices = shape.linear + (shape.expert_parameters if engines else 0)
    if job.stays_quantized and shape.experts is not None:
        matrices += shape.expert_parameters - shape.experts.blocks * shape.experts.router
    stored = matrices * frozen + (shape.head.parameters * STORED["int8"] if engines else 0)
    others = shape.parameters - matrices - (shape.own_head if engines else 0)
    left, ends = "embedding, head, norms and experts: {bytes} bytes a weight", 0
    if job.stays_quantized and shape.held_ends:
        ends = shape.embedding + shape.own_head
        left = "norms and routers: {bytes} bytes a weight"
    elif job.stays_quantized:
        left = "embedding, head, norms and routers: {bytes} bytes a weight"
    elif engines:
        left = "embedding and norms: {bytes} bytes a weight"
    bits = "{bits} bits a weight with its scales"
    return [
        Part("linear layers", stored, bits, (("bits", f"{8 * frozen:.3g}"),)),
        Part("embedding and head", ends * shape.held_ends, bits, (("bits", f"{8 * shape.held_ends:.3g}"),)),
        Part("other weights", (others - ends) * number, left, (("bytes", f"{number:g}"),)),
    ]


def _means(job: Job, own: float) -> float:
    """Bytes that the optimizer keeps of a weight."""
    count, size = OPTIMIZERS[job.optim]
    return count * (size or own)


def _trained(job: Job) -> list[Part]:
    """What training adds to the weights, whatever the text."""
    program = job.program
    if (lora := job.lora) is not None:
        each = program.adapter_weight
        trained = lora.trained if job.adapter_weights is None else job.adapter_weights
        return [
            Part("adapter", trained * 2 * each, "{count} weights and their gradients", (("count", f"{trained:,}"),)),
            Part("optimizer", trained * _means(job, each), "what it keeps of each trained weight"),
        ]
    count, number = job.shape.parameters, job.number
    master = program.master if number < 4 and job.optim != ROUNDED else 0
    means = count * _means(job, program.mean or number)
    if job.optim in EIGHT_BITS:  # whose means of embeddings stay in float32 (Dettmers et al. 2022, section 2.3)
        means += job.shape.embedding * (8 - _means(job, 0))
    return [
        Part("float32 copies", count * master, "of weights that are computed with in 16 bits"),
        Part("optimizer", means, "what it keeps of each trained weight"),
    ]


# -- what a pass adds ------------------------------------------------------------------------------------


def _at_loss(job: Job) -> list[Part]:
    values = (("blocks", str(job.shape.blocks)), ("tokens", f"{job.tokens:,}"))
    why = "what {blocks} blocks keep of {tokens} tokens for the way back"
    logits, back = _logits(job), _way_back(job)
    last = back if back.bytes > logits.bytes else logits
    kept = sum(of.bytes for of in _blocks(job))
    if job.checkpointing:
        kept, again = job.shape.blocks * job.shape.width * job.number * job.tokens + _holes(job), _one_block(job)
        why = "the states between {blocks} blocks, of {tokens} tokens"
        is_later = again + back.bytes > logits.bytes  # the logits are gone when a block is computed a second time
        if is_later or job.program.keeps_freed:
            kept += again
            why = "the states between {blocks} blocks, and one block whole, of {tokens} tokens"
        if not job.program.keeps_freed:
            last = back if is_later else logits
    parts = [Part("activations", kept, why, values), last, *_dequantized(job)]
    if job.method == "full" and job.adds_up and not job.in_backward:
        parts.append(Part("gradients", _gradients(job), "of the passes before"))
    return parts


def _at_end(job: Job) -> list[Part]:
    """The last block's way back: all gradients are there, all other blocks' activations are gone."""
    gradients = _gradients(job) if job.method == "full" and not job.in_backward else 0
    return [
        Part("gradients", gradients, "of all weights"),
        Part("activations", _one_block(job), "of one block"),
        *_dequantized(job),
    ]


def _gradients(job: Job) -> float:
    each = job.number if job.optim == ROUNDED else job.program.gradient or job.number
    return job.shape.parameters * each


def _one_block(job: Job) -> float:
    return sum(part.bytes for part in _blocks(job)) / job.shape.blocks


def _blocks(job: Job) -> list[Part]:
    """What blocks keep of a pass's tokens, all of them together."""
    shape = job.shape
    per_token = shape.blocks * shape.width * (shape.norms * _norm(job) + job.program.rest)
    per_token += _attention(job) + _inner(job) + _inputs(job)
    return [Part("blocks", per_token * job.tokens + _scores(job) + _holes(job), "")]


def _holes(job: Job) -> float:
    """What lies free between what blocks keep."""
    return job.program.holes * job.shape.blocks * job.shape.width * job.tokens


def _norm(job: Job) -> float:
    """Bytes that a norm keeps of each number that it reads."""
    if job.shape.has_layer_norms:
        return job.number
    own = job.program.rms_norm or (job.number if job.shape.takes_kernels else PLAIN_NORM)
    return own + job.program.trained_norm * (job.method == "full")


def _attention(job: Job) -> float:
    """Bytes a token: queries, keys, values, what is made of them, and states of linear attention."""
    of, program, number = job.shape.attention, job.program, job.number
    keys = of.key_width + of.value_width
    if program.repeats_keys and job.flash:
        keys = of.query_width + of.output_width
    kept = float(of.query_width + keys + of.output_width)
    if program.has_joined_heads:  # values are a view of it: keys and queries were turned, and copied
        kept += of.query_width + of.key_width
    if of.has_norms:
        kept += _norm(job) / number * (of.query_width + of.key_width)
    linear = 4 * job.shape.width * of.linear_blocks + of.state * of.linear_blocks / 64  # a state for each chunk of 64
    return number * (len(of.windows) * kept + linear) + 4 * of.heads * len(of.windows)


def _scores(job: Job) -> float:
    """Where attention keeps its weights, of each text alone."""
    if job.flash:
        return 0.0
    heads, pairs = job.shape.attention.heads, job.batch * job.length**2
    return len(job.shape.attention.windows) * heads * pairs * (job.program.score or job.number)


def _inner(job: Job) -> float:
    """Bytes a token of what feed-forward parts keep inside."""
    shape, vectors = job.shape, 1.0
    if shape.is_gated:
        vectors = job.program.gated if shape.takes_kernels else max(job.program.gated, PLAIN_GATE)
    wide = float(sum(layer.inside * layer.count for layer in shape.layers if layer.is_inner and layer.reads == INSIDE))
    if shape.experts is not None:
        of = shape.experts
        wide += of.blocks * of.chosen * (of.inner + ROUTED * shape.width / vectors)
    return job.number * vectors * wide


def _inputs(job: Job) -> float:
    """Bytes a token of what linear layers read, where it is kept for their weights or their adapters."""
    program, number, lora = job.program, job.number, job.lora
    adapted = {row.layer.name for row in lora.rows} if lora is not None else set()
    total = 0.0
    for layers in _groups(job.shape):
        wide = layers[0].inside * layers[0].count
        if job.method == "full":
            total += 0 if layers[0].reads == HEADS else number * wide  # attention keeps what it made
        with_adapter = sum(layer.name in adapted for layer in layers)
        if with_adapter:
            each = program.adapter_input + program.adapter_dropout * bool(job.dropout)
            total += each * wide * (1 if program.shares_input else with_adapter)
        if job.method == "qlora":
            total += program.quantized_input * wide
    return total


def _groups(shape: Shape) -> list[list[Layer]]:
    """Layers that read the same."""
    groups: dict[tuple[object, ...], list[Layer]] = {}
    for layer in shape.layers:
        key = (layer.is_inner, layer.reads, layer.inside, layer.count, layer.name.rpartition(".")[0])
        groups.setdefault(key, []).append(layer)
    return list(groups.values())


def _logits(job: Job) -> Part:
    program, tokens, vocabulary = job.program, job.tokens, job.shape.vocabulary
    whole = program.logit * vocabulary * tokens
    at_once = min(tokens, program.chunk_tokens) * program.chunk_logit * vocabulary
    made = (whole + at_once) * job.has_logits
    if program.chunk_tokens and job.method == "full" and job.has_logits:
        # the head's gradient is made on the way forward, of many rows at once
        made += vocabulary * (job.shape.width * 4 + min(tokens, program.head_rows) * job.number)
    why = "scores of {vocabulary} tokens, their float32 copy and gradient, for {tokens} tokens at a time"
    chunk = tokens if program.logit else min(tokens, program.chunk_tokens)
    return Part("logits", made, why, (("vocabulary", f"{vocabulary:,}"), ("tokens", f"{chunk:,}")))


def _way_back(job: Job) -> Part:
    """What the last block's way back holds beside what it has kept."""
    program, tokens = job.program, job.tokens
    back = job.number * tokens * (2 * job.shape.width + 3 * _widest(job.shape))
    if program.remakes_scores and job.flash:
        back += job.number * job.shape.attention.heads * job.batch * job.length**2
    return Part("way back", back, "of one block, when the logits are gone")


def _widest(shape: Shape) -> int:
    inside = [layer.inside for layer in shape.layers if layer.reads == INSIDE]
    return max([*inside, shape.experts.inner * shape.experts.chosen if shape.experts else 0])


def _dequantized(job: Job) -> list[Part]:
    if job.method == "full" or not (job.stays_quantized or job.frozen in ("nf4", "nf4-dq")):
        return []
    largest = max(layer.inside * layer.outside for layer in job.shape.layers)
    copies = 0 if job.stays_quantized else job.program.quantized_heads * job.shape.head.parameters
    return [Part("dequantized", (largest + copies) * job.number, "the largest layer, as it is computed with")]


# -- answering -------------------------------------------------------------------------------------------


def _answering(job: Job) -> list[Part]:
    number = 1.0 if job.kv_dtype == "int8" else STORED[job.kv_dtype or job.dtype]
    kept = cache_bytes(job.shape, job.batch, job.length, number, forgets=job.program.forgets)
    why = "keys and values of {tokens} tokens, {bytes} bytes a number"
    scores = 8.0 * job.batch * job.shape.vocabulary
    return [
        Part("KV cache", kept, why, (("tokens", f"{job.tokens:,}"), ("bytes", f"{number:g}"))),
        Part("logits", scores, "of one step, float32, twice"),
        *_dequantized(job),
    ]
