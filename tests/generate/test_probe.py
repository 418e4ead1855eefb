"""The probe: a core that answers as its model does passes, and none of the faults that a core could have does.

Each fault is put into a core that has passed, and the same probe is asked again.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from zoo import VARIANTS, tiny_model

from danlu.generate.batch import attend
from danlu.generate.batch.attend import Chunk, Plan, Rows
from danlu.generate.batch.core import Core
from danlu.generate.batch.kv import Shelf, Slot
from danlu.generate.batch.probe import Probe
from danlu.generate.batch.scheduler import Scheduler
from danlu.model.company.attention import Scoring
from danlu.model.company.states import Apart
from danlu.model.compute.float_attention import FloatAttention, float_attention
from danlu.model.lora_bank import Hooks, LowRank

USUAL = (
    "llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "mixtral",
    "deepseek_v3", "gpt_oss", "falcon", "qwen3_next",
)  # fmt: skip


def core_of(kind, dtype=torch.float32, seed=0):
    return Core(tiny_model(kind, seed).to(dtype), 2**26)


# -- no false alarm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", USUAL)
def test_a_right_core_is_not_suspected(kind, dtype):
    assert core_of(kind, dtype).why_alone == ""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", USUAL)
def test_a_right_core_of_other_weights_is_not_suspected(kind, dtype, seed):
    assert core_of(kind, dtype, seed).why_alone == ""


@pytest.mark.parametrize("slots", [0.5, 1, 2])
def test_a_budget_too_small_for_the_probe_is_no_fault_of_the_model(slots):
    model = tiny_model("bamba")
    need = Core(model, 2**26).store.shape.slot_bytes(1, 64)
    core = Core(model, int(slots * need))
    assert (core.why_alone, core.store.budget_bytes) == ("", int(slots * need))


# -- every fault is found


@pytest.fixture(scope="module")
def cores():
    """Kind, with its number format if that is not float32 -> (a core that has passed, the probe)."""
    known = {}

    def of(kind):
        if kind not in known:
            name, _, dtype = kind.partition(" in ")
            model = tiny_model(name).to(getattr(torch, dtype or "float32"))
            known[kind] = Core(model, 2**26), Probe.of(model)
        core, judge = known[kind]
        assert core.why_alone == judge.difference(core) == ""
        return core, judge

    return of


def changed(monkeypatch, owner, name, change):
    """Let `owner`'s method `name` be change(own, *given, **named)."""
    own = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *given, **named: change(own, *given, **named))


def scoring_changed(monkeypatch, **changes):
    """Let attention forget something of what a layer wants."""

    def attend(own, self, store, q, k, v, scoring, dropout=0.0):
        entries = {name: changes.get(name, getattr(scoring, name)) for name in Scoring.__dataclass_fields__}
        entries = {name: entry(scoring) if callable(entry) else entry for name, entry in entries.items()}
        return own(self, store, q, k, v, Scoring(**entries), dropout)

    changed(monkeypatch, Plan, "attend", attend)


def refused(core, judge):
    found = judge.difference(core)
    assert "of their spread" in found or "not numbers" in found, found
    assert core.is_idle
    assert core.store.used_bytes == 0


STATEFUL = (
    "bamba",
    "mamba",
    "minimax",
    "lfm2",
    "recurrent_gemma",
    "qwen3_next",
    "bamba in bfloat16",
    "lfm2 in bfloat16",
)


@pytest.mark.parametrize("kind", STATEFUL)
def test_states_that_are_forgotten_between_portions(cores, kind, monkeypatch):
    core, judge = cores(kind)
    monkeypatch.setattr(Chunk, "is_fresh", True)
    refused(core, judge)


@pytest.mark.parametrize("kind", STATEFUL)
def test_states_that_are_forgotten_between_steps(cores, kind, monkeypatch):
    core, judge = cores(kind)
    monkeypatch.setattr(Rows, "is_fresh", True)
    refused(core, judge)


@pytest.mark.parametrize("kind", STATEFUL)
def test_states_that_are_not_reset_for_the_next_text(cores, kind, monkeypatch):
    core, judge = cores(kind)

    def add(own, self):
        slot = own(self)
        for state in self.states:
            state[slot.index] = 3
        return slot

    changed(monkeypatch, Shelf, "add", add)
    assert judge.difference(core) == ""  # what lies there is nobody's
    monkeypatch.setattr(Chunk, "is_fresh", False)
    refused(core, judge)


@pytest.mark.parametrize("kind", STATEFUL)
def test_states_of_the_neighbours_row(cores, kind, monkeypatch):
    core, judge = cores(kind)
    own = Rows.states.func

    def states(self):
        return [state.roll(1, 0) for state in own(self)]

    monkeypatch.setattr(Rows, "states", property(states))
    refused(core, judge)


@pytest.mark.parametrize("kind", STATEFUL)
def test_states_that_a_fork_leaves_behind(cores, kind, monkeypatch):
    core, judge = cores(kind)

    def fork(self, parents):
        self.shelf.visible[self.index] = self.shelf.visible[self.index][parents]

    monkeypatch.setattr(Slot, "fork", fork)
    refused(core, judge)


@pytest.mark.parametrize("kind", STATEFUL)
def test_states_that_only_the_first_row_of_a_prompt_gets(cores, kind, monkeypatch):
    core, judge = cores(kind)
    monkeypatch.setattr(Chunk, "settle", lambda self, number: None)
    refused(core, judge)


@pytest.mark.parametrize("kind", ["bamba", "lfm2"])
def test_states_that_are_not_written_back(cores, kind, monkeypatch):
    core, judge = cores(kind)
    monkeypatch.setattr(Apart, "keep", lambda self, part, states, now: None)
    refused(core, judge)


@pytest.mark.parametrize("kind", ["jamba", "mamba"])
def test_a_layer_that_begins_anew_with_every_portion(kind, monkeypatch):
    monkeypatch.setattr("danlu.model.company.states.ANEW", set())
    assert "of their spread" in core_of(kind).why_alone


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "gpt_oss", "llama in bfloat16"])
def test_positions_that_are_off_by_one_in_steps(cores, kind, monkeypatch):
    """In the prompt as well, a model with rotation would not notice."""
    core, judge = cores(kind)

    def take_rows(own, self, work):
        own(self, work)
        work.positions[:] = [at + 1 for at in work.positions]
        for rows in work.plan.rows:
            for slot in rows.slots:
                slot.positions[slot.length - slot.rows : slot.length] += 1

    changed(monkeypatch, Scheduler, "_take_rows", take_rows)
    if kind == "bloom":  # one more on the last key
        assert judge.difference(core) != ""
    else:
        refused(core, judge)


@pytest.mark.parametrize("off", [-1, 1])
@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gpt_oss", "gpt_neo", "mistral in bfloat16"])
def test_a_window_within_reach_that_is_off_by_one(cores, kind, off, monkeypatch):
    core, judge = cores(kind)
    scoring_changed(monkeypatch, window=lambda scoring: scoring.window and scoring.window + off)
    refused(core, judge)


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        ("gemma2", "softcap"),
        ("gpt_oss", "sinks"),
        ("bloom", "slopes"),
        ("mpt", "slopes"),
        ("falcon-rw", "slopes"),
        ("llama4_text", "chunk"),
        ("mistral", "window"),
    ],
)
def test_what_a_layer_wants_of_attention_and_does_not_get(cores, kind, lost, monkeypatch):
    assert kind in VARIANTS or lost
    core, judge = cores(kind)
    scoring_changed(monkeypatch, **{lost: None})
    refused(core, judge)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_scale_that_is_taken_from_the_dimension(cores, kind, monkeypatch):
    core, judge = cores(kind)
    scoring_changed(monkeypatch, scaling=lambda scoring: scoring.scaling * 1.05)
    refused(core, judge)


@pytest.mark.parametrize("kind", ["gpt_oss", "bloom"])
def test_one_layers_keys_of_another_row(cores, kind, monkeypatch):
    core, judge = cores(kind)

    def rows_may(own, self, at, window, chunk):
        may = own(self, at, window, chunk)
        return may.roll(1, 1) if window is None else may

    changed(monkeypatch, Plan, "_rows_may", rows_may)
    refused(core, judge)


@pytest.mark.parametrize("kind", ["gpt_oss", "deepseek_v3"])
def test_two_layers_that_share_a_list_and_should_not(cores, kind, monkeypatch):
    core, judge = cores(kind)

    def put(part, keys, values, k, v):
        pass  # the step's own keys are not written: what lies there is attended to

    monkeypatch.setattr(attend, "_put_rows", put)
    refused(core, judge)


def test_a_portion_that_sees_what_comes_after_it(cores, monkeypatch):
    core, judge = cores("gpt_oss")
    monkeypatch.setattr(
        Chunk, "may", lambda self, window, chunk: torch.ones(self.count, self.place + self.count, dtype=torch.bool)
    )
    refused(core, judge)


def test_a_portion_that_does_not_see_what_came_before(cores, monkeypatch):
    core, judge = cores("gpt_oss")

    def may(own, self, window, chunk):
        seen = own(self, window, chunk)
        seen[:, : self.place] = False
        return seen

    changed(monkeypatch, Chunk, "may", may)
    refused(core, judge)


@pytest.mark.skipif(float_attention() is None, reason="no C compiler")
@pytest.mark.parametrize("lost", ["own", "earlier"])
def test_a_compiled_attention_that_loses_some_places(cores, monkeypatch, lost):
    core, judge = cores("llama")

    def attend(own, self, q, k, v, keys, values, visible, positions, lengths, *given):
        visible = visible.clone()
        first = int(lengths.min()) - len(q) // len(lengths)
        visible[..., first:] &= lost != "own"
        visible[..., :first] &= lost != "earlier"
        own(self, q, k, v, keys, values, visible, positions, lengths, *given)

    changed(monkeypatch, FloatAttention, "attend", attend)
    refused(core, judge)


@pytest.mark.parametrize("kind", ["gpt2", "bamba"])
def test_an_adapter_that_reaches_a_request_without_one(cores, kind, monkeypatch):
    core, judge = cores(kind)
    name = next(name for name in core.bank._shapes if "proj" in name or "c_attn" in name)
    inside, outside = core.bank._shapes[name]
    part = LowRank(torch.full((inside, 2), 0.1), torch.full((2, outside), 0.1))
    core.bank.put("leaking", Path("nowhere"), {name: part})
    try:
        assert judge.difference(core) == ""

        def during(own, self, step, *kept):
            every = type(step).of([("leaking", step.count or 0)], step.device) if step.count else step
            return own(self, every, *kept)

        changed(monkeypatch, Hooks, "during", during)
        refused(core, judge)
    finally:
        core.bank.drop("leaking")


def test_scores_that_are_no_numbers(cores, monkeypatch):
    core, judge = cores("llama")
    changed(monkeypatch, core, "decoder", lambda own, *given: own(*given) * torch.nan)
    assert "not numbers" in judge.difference(core)


def test_code_that_fails_is_said_and_the_core_is_left_idle(cores, monkeypatch):
    core, judge = cores("bamba")
    changed(monkeypatch, Rows, "give", lambda own, self, y: own(self, y)[0:0])
    assert "fails" in judge.difference(core)
    assert core.is_idle
    assert core.store.used_bytes == 0


# -- texts that tell too little


def test_texts_that_tell_nothing_of_a_model_do_not_pass_it():
    model = tiny_model("gpt2")
    with torch.no_grad():
        for layer in model.transformer.h:
            layer.attn.c_proj.weight.zero_()
            layer.attn.c_proj.bias.zero_()
        model.transformer.wpe.weight.zero_()
    assert "a fault would not be seen" in Core(model, 2**26).why_alone


def test_a_prompt_is_read_in_portions(cores, monkeypatch):
    core, judge = cores("llama")
    sizes = []

    def take_chunk(own, self, work, request, room):
        sizes.append((request.rows, own(self, work, request, room)))
        return sizes[-1][1]

    changed(monkeypatch, Scheduler, "_take_chunk", take_chunk)
    assert judge.difference(core) == ""
    assert [count for rows, count in sizes if rows == 1] == [7]
    assert [count for rows, count in sizes if rows == 3] == [5, 3, 1]
