"""What a training will hold is told before it, refused where it cannot fit, and told beside what was held."""

from __future__ import annotations

from dataclasses import replace

import pytest
from showing import Lines
from trainings import recipe_of, write_data

from danlu.cli import call
from danlu.device import read_device
from danlu.errors import MemoryShortage
from danlu.journal import Draft, Journal, is_run
from danlu.plan.lora import ALL_LINEAR
from danlu.plan.models import shape_of
from danlu.steps import foresight, sft
from danlu.steps.foresight import foresee, of_recipe
from danlu.steps.training import run


@pytest.fixture
def made(tmp_path, tiny_model, monkeypatch):
    """kind, changes -> a recipe on a tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_data(tmp_path)
    return lambda kind="sft", **changes: recipe_of(kind, tiny_model, **changes)


def prepared(recipe, memory_bytes, show=None):
    """What a draft has of it, with so much memory free."""
    device = replace(read_device(), memory_bytes=memory_bytes)
    with Draft() as draft:
        parts = sft.prepare(recipe, draft, device, Lines())
        kept = len(draft.rows)
        foresee(parts, draft, show or Lines())
        journal = Journal(recipe.directory)
        journal.directory.mkdir(parents=True)
        for write in draft.rows[kept:]:
            write(journal)
    return journal


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "all weights"])
def test_a_run_tells_before_and_after(made, lora):
    show = Lines()
    recipe = made(**({} if lora else {"lora": None}), prove=None)
    directory = run(recipe, sft.prepare, show, "")
    journal = Journal(directory)
    plan = journal.results()["memory_plan"]
    assert plan["measured"] == max(row["peak_memory_bytes"] for row in journal.metrics())
    assert plan["error"] == pytest.approx(plan["predicted"] / plan["measured"] - 1)
    assert sum(plan["parts"].values()) == pytest.approx(plan["predicted"], abs=len(plan["parts"]))
    assert ("adapter" in plan["parts"]) == lora
    assert sum("foreseen" in line and "free" in line for line in show.said) == 1
    assert sum("foreseen" in line and "held" in line for line in show.said) == 1
    assert [event["kind"] for event in journal.events()].count("memory") == 2


def test_what_cannot_fit_is_refused_before_anything_is_written(made, monkeypatch):
    recipe = made(train={"micro_batch_tokens": 4096, "batch_size": 30})
    plan = prepared(recipe, 10**10).results()["memory_plan"]
    Journal(recipe.directory).directory.rename("told")
    room = (plan["predicted"] - plan["parts"]["runtime"]) // 2
    monkeypatch.setattr("danlu.steps.training.read_device", lambda: replace(read_device(), memory_bytes=room))
    with pytest.raises(MemoryShortage, match=r"the training would hold .* are free on cpu"):
        run(recipe, sft.prepare, Lines(), "")
    assert not is_run(recipe.directory)


def test_the_smallest_change_that_fits_is_named(made):
    recipe = made(train={"micro_batch_tokens": 4096, "batch_size": 30})
    plan = prepared(recipe, 10**10).results()["memory_plan"]
    needed = plan["predicted"] - plan["parts"]["runtime"]
    Journal(recipe.directory).directory.rename("told")
    with pytest.raises(MemoryShortage) as caught:
        prepared(recipe, int(needed * 0.6))
    assert caught.value.fix.startswith("train.micro_batch_tokens=")
    tokens = int(caught.value.fix.partition("=")[2].partition(",")[0])
    smaller = recipe.model_copy(update={"train": recipe.train.model_copy(update={"micro_batch_tokens": tokens})})
    assert prepared(smaller, int(needed * 0.6)).results()["memory_plan"]["predicted"] < plan["predicted"]


def test_where_the_arithmetic_may_be_wrong_it_is_tried(made):
    recipe = made(train={"micro_batch_tokens": 4096, "batch_size": 30})
    plan = prepared(recipe, 10**10).results()["memory_plan"]
    Journal(recipe.directory).directory.rename("told")
    show = Lines()
    prepared(recipe, int((plan["predicted"] - plan["parts"]["runtime"]) * 0.95), show)
    assert "that is more than there is" in show.said[-1]


def test_what_is_not_counted_is_said_and_no_number_stands_for_it(made, monkeypatch):
    monkeypatch.setattr(foresight, "parameter_counts", lambda model: (1, 10**9))
    journal = prepared(made(), 10**10)
    assert "memory_plan" not in journal.results()
    (event,) = journal.events()
    assert event["reason"].startswith("not foreseen: llama: the model has other weights")


@pytest.mark.parametrize("kind", ["pretrain", "reward", "dpo"])
def test_other_kinds_are_foreseen_as_well(made, kind):
    from danlu.steps.kinds import KINDS as STEPS

    recipe = made(kind)
    STEPS[kind].alone.run(recipe, Lines(), "")
    plan = Journal(recipe.directory).results()["memory_plan"]
    assert plan["measured"] > 0
    assert plan["parts"]["activations"] > 0


def test_a_run_that_draws_its_answers_is_not_foreseen(made):
    from danlu.steps.ppo import prepare

    show = Lines()
    directory = run(made("ppo"), prepare, show, "")
    assert not any("foreseen" in line for line in show.said)
    assert any("answers are drawn" in event["reason"] for event in Journal(directory).events())


def test_a_recipe_alone_is_as_full_as_it_may_be(made):
    recipe = made(train={"micro_batch_tokens": 4096, "gradient_checkpointing": True})
    job = of_recipe(recipe, shape_of("smollm2-135m"), replace(read_device(), name="cpu", has_bfloat16=False))
    assert (job.tokens, job.length, job.dtype) == (4096, recipe.data.max_length, "float32")
    assert (job.method, job.targets, job.checkpointing, job.adds_up) == ("lora", ALL_LINEAR, True, True)


def test_weights_in_4_bits_are_foreseen_as_they_are_stored(made):
    device = replace(read_device(), name="cpu", has_bfloat16=False)
    for twice, stored in ((True, "nf4-dq"), (False, "nf4")):
        recipe = made(model={"load_in_4bit": True, "bnb_4bit_use_double_quant": twice})
        job = of_recipe(recipe, shape_of("smollm2-135m"), device)
        assert (job.method, job.stored) == ("qlora", stored)


def test_the_command_of_a_recipe(made, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(
        "data: {path: chats.jsonl}\nmodel: {name: smollm2-135m}\ntrain: {learning_rate: 1e-4}\nlora: {r: 4}\n"
    )
    assert call(["plan", "memory", "mine.yaml"]) == 0
    assert "1,221,120 weights and their gradients" in " ".join(capsys.readouterr().out.split())
    assert call(["plan", "memory", "mine.yaml", "--batch", "2"]) != 0
    assert "has no effect beside a recipe" in capsys.readouterr().err


def test_a_chain_is_told_step_by_step(capsys):
    assert call(["plan", "memory", "align-dpo"]) == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line in ("sft:", "dpo:")] == ["sft:", "dpo:"]
