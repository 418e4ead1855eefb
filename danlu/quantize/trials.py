"""Forms of a model, made and measured on a user's texts, until one is chosen (choose.py) and gets the name asked for.

The texts are parted three ways: what methods calibrate on, what forms are compared on, and what the chosen one is
looked at again on. Each form goes through the gate like any other. What was measured is kept beside the result while
it lasts, so that a process that was killed goes on, and that another budget costs no second measurement.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy

from danlu.data.chat import Chat
from danlu.data.formats import Message
from danlu.device import Device, release_memory
from danlu.errors import ConfigError, DataError, ParityError, disk_faults, size_in_words
from danlu.evaluate.bootstrap import Interval
from danlu.evaluate.overlap import chrf
from danlu.fingerprint import of_value, of_weights
from danlu.generate.engine import Engine
from danlu.generate.params import GenerationParams
from danlu.journal import claimed, write_atomic
from danlu.model.adapters import move_into_place
from danlu.model.load import load_model, load_tokenizer
from danlu.quantize.calibration import Texts, texts_of
from danlu.quantize.choose import (
    LEVEL,
    Choice,
    Scores,
    Trial,
    choose,
    divergence_of,
    named,
    overlap_of,
    reason,
    rise,
)
from danlu.quantize.divergence import of_logits
from danlu.quantize.driver import Quantized, check_quantizable, quantize
from danlu.quantize.gate import computed_dtype, read_quantized
from danlu.quantize.merge import engine_around
from danlu.quantize.options import LOOKING, AskedOptions, QuantizeOptions
from danlu.quantize.parity import Closeness

LENGTH = 512  # tokens of a text that forms are compared on; longer ones are several
LEAST = 16  # texts in each of the two parts
SHARE = 4  # of so many texts one goes into each of them
QUESTIONS, BEGINNING, ANSWER = 16, 48, 48  # texts whose beginnings are continued, tokens of a beginning, of an answer
REPORT = "choice.json"
ORIGINAL = "original"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Chosen:
    """What was made, and why that.

    Attributes:
        quantized: the form that was taken.
        report: of what was tried, as it stands beside the weights; empty where nothing was left to be chosen.
    """

    quantized: Quantized
    report: dict[str, Any]


class Parts(NamedTuple):
    """Token ids of texts: to calibrate on, to compare on, to look again on."""

    calibration: list[list[int]]
    compared: list[list[int]]
    again: list[list[int]]


def part(texts: Texts, judged_tokens: int) -> Parts:
    """Of four texts one is for comparing and one for looking again, until these are `judged_tokens` each.

    The rest calibrates. Long texts are cut into pieces, which stay together unless there are few texts. Raises
    DataError for too few.
    """
    whole = [[ids[at : at + LENGTH] for at in range(0, len(ids), LENGTH)] for ids in texts.ids if len(ids) > 1]
    dealt = whole if len(whole) >= SHARE * LEAST else [[piece] for pieces in whole for piece in pieces]
    parts: list[list[list[int]]] = [[], [], []]
    for at, pieces in enumerate(dealt):
        side = at % SHARE
        is_full = side >= 2 or (len(parts[side]) >= LEAST and sum(map(len, parts[side])) >= judged_tokens)
        parts[2 if is_full else side] += [ids for ids in pieces if len(ids) > 1]
    compared, again, calibration = parts
    if min(len(compared), len(again)) < LEAST:
        raise DataError(
            f"{texts.source}: {len(dealt)} texts of up to {LENGTH} tokens: too little to choose by",
            allowed=f"at least {SHARE * LEAST}: a quarter to compare forms on, and a quarter to look again on",
            fix="give more text with calibration, or name bits and method yourself",
        )
    return Parts(calibration, compared, again)


def quantize_as_asked(
    directory: Path,
    out: Path,
    asked: AskedOptions,
    device: Device,
    say: Say,
    conversations: Sequence[Sequence[Message] | str] = (),
) -> Chosen:
    """Write the model in `directory` in few bits to `out`: as asked for, or in the smallest form within `asked.budget`.

    Raises what `quantize` does; where something is to be chosen, DataError for too little text, and ParityError where
    no form is within the budget: then nothing stands at `out`.
    """
    place = check_asked(directory, out, asked, device)
    forms = asked.to_try()
    if not asked.is_open:
        return Chosen(quantize(directory, out, forms[0], device, say, conversations), {})
    with claimed(place, say):
        return _Choosing(directory, place, asked, forms, device, say, conversations).run()


def check_asked(directory: Path, out: Path, asked: AskedOptions, device: Device) -> Path:
    """`check_quantizable` of every form that may be made."""
    return [check_quantizable(directory, out, one, device) for one in asked.to_try()][-1]


class _Choosing:
    def __init__(
        self,
        directory: Path,
        out: Path,
        asked: AskedOptions,
        forms: Sequence[QuantizeOptions],
        device: Device,
        say: Say,
        conversations: Sequence[Sequence[Message] | str],
    ) -> None:
        self.directory, self.out, self.asked, self.device, self.say = directory, out, asked, device, say
        self.forms = {named(one.method, one.bits): one for one in forms}
        self.conversations = conversations
        self.folder = out.with_name(f".{out.name}.choosing")
        self.tokenizer = load_tokenizer(directory)
        texts = texts_of(asked.calibration, Chat.of(self.tokenizer, None))
        self.source, self.parts = texts.source, part(texts, asked.judged_tokens)
        self.made: dict[str, Quantized] = {}
        self.measured: dict[str, dict[str, Any]] = {}
        self.identity = ""

    def run(self) -> Chosen:
        self._begin()
        compared, again = (sum(map(len, ids)) for ids in (self.parts.compared, self.parts.again))
        self.say(
            f"{len(self.forms)} forms are compared on {compared:,} tokens of {self.source}; the chosen one is "
            f"looked at again on {again:,} others"
        )
        self._measure()
        trials = [self._trial(name) for name in self.forms]
        for one in trials:
            self.say(in_words(one))
        choice = choose(trials, self.asked.budget, self._look_again)
        if not choice.taken:
            raise self._nothing_fits(choice)
        return self._finish(choice)

    # -- what is kept ----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Take up what another process has made and measured of the same; what is left of anything else goes."""
        shaping = self.asked.model_dump(mode="json", exclude={"max_loss"})
        self.identity = of_value([of_weights(self.directory), shaping, list(self.parts), str(self.conversations)])
        with disk_faults(self.folder, "choosing"):
            told: dict[str, Any] = {}
            with suppress(OSError, ValueError):
                told = json.loads((self.folder / REPORT).read_text("utf-8"))
            if told.get("identity") != self.identity:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True)
                self._keep()
                return
        self.measured = told["measured"]
        self.made = {name: _remembered(one) for name, one in told["made"].items() if self._place(name).exists()}
        if self.measured or self.made:
            self.say("going on with what was made and measured")

    def _keep(self) -> None:
        made = {name: asdict(one) for name, one in self.made.items()}
        document = {"identity": self.identity, "made": made, "measured": self.measured}
        with disk_faults(self.folder, "keeping what was measured"):
            write_atomic(self.folder / REPORT, json.dumps(document))

    def _place(self, name: str) -> Path:
        return self.folder / name.replace(" ", "-")

    # -- forms -----------------------------------------------------------------------------------------------

    def _make(self, name: str) -> None:
        """The form's files, for the rest of this choice."""
        if name in self.made:
            return
        self.say(f"making {name}")
        options = self.forms[name]
        texts = Texts(self.parts.calibration, self.source) if options.method in LOOKING else None
        place = self._place(name)
        self.made[name] = quantize(self.directory, place, options, self.device, self.say, self.conversations, texts)
        self._keep()

    def _measure(self) -> None:
        """All that is not measured yet; then the original lies in memory beside one form after the other."""
        missing = [name for name in self.forms if name not in self.measured]
        for name in missing:
            try:
                self._make(name)
            except (ParityError, ConfigError) as error:  # the gate's, and a format's for the sizes of layers
                self.measured[name] = {"why": error.seen}
                self._keep()
        missing = [name for name in missing if name not in self.measured]
        if not missing:
            return
        model = load_model(self.directory, device=self.device, dtype=computed_dtype(self.directory))
        with engine_around(model, self.tokenizer) as original:
            if ORIGINAL not in self.measured:
                self._keep_figures(ORIGINAL, original, original)
            for name in missing:
                form = read_quantized(self.directory, self._place(name), self.device)
                with engine_around(form, self.tokenizer) as engine:
                    self._keep_figures(name, original, engine)
                del form, engine
                release_memory()

    def _keep_figures(self, name: str, original: Engine, form: Engine) -> None:
        self.say(f"comparing {name}")
        scores = {part: scored(original, form, getattr(self.parts, part)) for part in ("compared", "again")}
        answers, speed = answered(form, self.parts.compared[:QUESTIONS])
        self.measured[name] = {
            **{part: one._asdict() for part, one in scores.items()},
            "answers": answers,
            "tokens_per_second": speed,
            "bytes": self.made[name].bytes if name in self.made else 0,
        }
        self._keep()

    # -- the choice ------------------------------------------------------------------------------------------

    def _scores(self, name: str, part: str) -> Scores:
        return Scores(**self.measured[name][part])

    def _trial(self, name: str) -> Trial:
        told = self.measured[name]
        if "why" in told:
            return Trial(name, why=told["why"])
        original, form = self._scores(ORIGINAL, "compared"), self._scores(name, "compared")
        own = self.measured[ORIGINAL]["answers"]
        return Trial(
            name,
            told["bytes"],
            form.perplexity,
            rise(original, form),
            divergence_of(form),
            sum(form.same) / sum(form.tokens),
            overlap_of([chrf(*pair) for pair in zip(told["answers"], own, strict=True)]),
            told["tokens_per_second"],
        )

    def _look_again(self, name: str) -> Interval:
        return rise(self._scores(ORIGINAL, "again"), self._scores(name, "again"))

    def _finish(self, choice: Choice) -> Chosen:
        why = reason(choice, self.asked.budget)
        self.say(why)
        self._make(choice.taken)
        report = {
            "taken": choice.taken,
            "reason": why,
            "max_loss": self.asked.budget,
            "level": LEVEL,
            "texts": self.source,
            "tokens": {name: sum(map(len, ids)) for name, ids in self.parts._asdict().items()},
            "original": {
                "perplexity": self._scores(ORIGINAL, "compared").perplexity,
                "tokens_per_second": self.measured[ORIGINAL]["tokens_per_second"],
            },
            "trials": [one.to_dict() for one in choice.trials],
        }
        place = self._place(choice.taken)
        with disk_faults(self.out, "naming the quantized model"):
            write_atomic(place / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
            move_into_place(place, self.out)
        shutil.rmtree(self.folder, ignore_errors=True)
        return Chosen(self.made[choice.taken], report)

    def _nothing_fits(self, choice: Choice) -> ParityError:
        """What was measured stays, so that another budget is answered at once; the forms do not."""
        for name in self.forms:
            shutil.rmtree(self._place(name), ignore_errors=True)
        bounds = {
            one.name: max(one.loss.high, self._look_again(one.name).value)
            for one in choice.trials
            if one.loss is not None
        }
        if not bounds:
            found = "none could be made: " + "; ".join(f"{one.name}: {one.why}" for one in choice.trials)
            fix = "take more bits or other groups, or allow more with max_kl"
        else:
            name = min(bounds, key=bounds.__getitem__)
            found = f"{name} comes nearest, with up to {bounds[name]:.2%}"
            enough = math.ceil(bounds[name] * 1000 + 1) / 10
            fix = (
                f"allow more, such as max_loss={enough:g}%: what was measured is kept; or give more text, which makes "
                "intervals narrower, or smaller groups"
            )
        return ParityError(
            f"none of {len(self.forms)} forms keeps its loss on {self.source} below {self.asked.budget:.2%}: {found}",
            fix=fix,
        )


def _remembered(told: dict[str, Any]) -> Quantized:
    return Quantized(**{**told, "closeness": Closeness(**told["closeness"]), "said": tuple(told["said"])})


# -- measuring -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def scored(original: Engine, form: Engine, texts: Sequence[Sequence[int]]) -> Scores:
    """What a form of a model makes of texts, each of at least two tokens, beside the original."""
    found = Scores([], [], [], [])
    for ids in texts:
        p, q = (engine.logits(ids)[:-1].float() for engine in (original, form))
        wanted = torch.tensor(ids[1:], device=q.device)
        found.losses.append(float(cross_entropy(q.double(), wanted, reduction="sum")))
        found.tokens.append(len(q))
        found.divergences.append(float(of_logits(p, q).sum()))
        found.same.append(int((p.argmax(-1) == q.argmax(-1)).sum()))
    return found


def answered(engine: Engine, texts: Sequence[Sequence[int]]) -> tuple[list[str], float]:
    """How a model goes on from the beginnings of texts, greedily; and tokens a second of that."""
    prompts = [list(ids[:BEGINNING]) for ids in texts]
    begun = time.perf_counter()
    generations = engine.generate(prompts, GenerationParams(max_new_tokens=ANSWER))
    seconds = time.perf_counter() - begun
    return [one.text for one in generations], sum(len(one.sequences[0].token_ids) for one in generations) / seconds


def in_words(trial: Trial) -> str:
    """A line on a form that was tried."""
    if trial.loss is None or trial.divergence is None or trial.overlap is None:
        return f"{trial.name}: {trial.why}"
    return (
        f"{trial.name}: {size_in_words(trial.bytes)}, perplexity {trial.loss.value:+.2%} (to {trial.loss.high:+.2%}), "
        f"{trial.divergence.value:.3g} nats, the same choice at {trial.same_choice:.1%}, overlap of answers "
        f"{trial.overlap.value:.0f} of 100, {trial.tokens_per_second:,.0f} tokens/s"
    )
