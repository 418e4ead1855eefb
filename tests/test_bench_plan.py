"""Published peaks of memory: none is judged by constants that have seen it, and the arithmetic is as near as asked."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from danlu.plan.memory import estimate

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import plan
    import plan_fake
    import plan_fit
    import plan_recipe
    import plan_rows
    import plan_runs

    yield plan, plan_fit, plan_rows, plan_runs, plan_fake, plan_recipe
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def rows(bench):
    return list(bench[2].rows())


def test_of_forty_published_rows_and_more_the_median_and_the_worst_are_as_asked(bench, rows):
    counted = [row for row in rows if not row.out]
    assert len(counted) >= 40
    median, worst = bench[0].summary([one.error for one in bench[0].judged(counted)])
    assert median <= bench[0].MEDIAN
    assert worst <= bench[0].WORST


def test_others_are_further_off(bench, rows):
    plan, fit, *_ = bench
    counted = [row for row in rows if not row.out]
    own, _ = plan.summary([one.error for one in plan.judged(counted)])
    for formula in (fit.unsloth, fit.accelerate):
        median, _ = plan.summary([formula(row.job) / row.measured - 1 for row in counted])
        assert median > 3 * own


def test_what_is_not_judged_says_why(rows):
    assert {row.metric for row in rows} == {"allocated", "active", "reserved", "card"}
    assert all(row.measured > 0 and row.rounding > 0 for row in rows)
    assert len({row.out for row in rows if row.out}) > 3


def test_each_row_is_in_one_half_and_judged_by_the_other(bench, rows):
    counted = [row for row in rows if not row.out]
    first, second = bench[0].halves(counted)
    assert sorted(map(id, [*first, *second])) == sorted(map(id, counted))
    assert abs(len(first) - len(second)) <= 7
    learnt = []

    def fit(some):
        learnt.append({id(row) for row in some})
        return bench[2].PROGRAMS

    judged = bench[0].judged(counted, fit)
    assert [one.row for one in judged] == counted
    assert learnt == [set(map(id, first)), set(map(id, second))]


def test_a_constant_is_found_again(bench, rows):
    """Rows that a program with known constants makes give these constants."""
    plan, fit, published, *_ = bench
    known = dict(published.PROGRAMS)
    for name in ("litgpt-2023", "litgpt-2024"):
        known[name] = replace(known[name], rest=3.0, logit=8.0)
    made = [replace(row, measured=fit.predicted(row, known)) for row in rows if not row.out]
    found = fit.fitted(made)
    assert found["litgpt-2023"].rest == pytest.approx(3.0, abs=0.01)
    assert found["litgpt-2024"].logit == pytest.approx(8.0, abs=0.01)
    assert found["torchtune"].rest == pytest.approx(0, abs=0.01)
    assert plan.summary([fit.predicted(row, found) / row.measured - 1 for row in made])[1] < 1e-3


def test_a_formula_of_others_worked_out_by_hand(bench):
    """Unsloth's, of 2 blocks of width 4, keys of 2, 8 inside, 10 words; accelerate's of its weights."""
    _, fit, *_ = bench
    from danlu.plan.configs import shape_from
    from danlu.plan.memory import Job

    shape = shape_from({
        "model_type": "llama", "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 10,
    }, "x")  # fmt: skip
    weights = 2 * (2 * ((4 + 2 + 2 + 4) * 4 + 3 * 4 * 8)) + 2 * (2 * 4 * 2 + 10 * 4 * 2)
    assert fit.unsloth(Job(shape, "inference")) == weights + 1.4e9
    adapter = 2 * 2 * ((4 + 4) * 2 + (4 + 2) * 2 + 3 * (4 + 8))  # r 2, 2 blocks
    tokens = 2 * 100 * (4 + 4 + 2 + 16) * 2 * 1.25
    got = fit.unsloth(Job(shape, "lora", length=100, r=2))
    assert got == weights + 2 * adapter + 6 * adapter + max(2 * adapter, min(0.15 * weights, tokens)) + tokens + 1.4e9
    assert fit.accelerate(Job(shape, "inference")) == 2 * shape.parameters
    assert fit.accelerate(Job(shape, "full")) == 8 * shape.parameters


@pytest.mark.parametrize("page", ["plan.md", "plan.zh.md"])
def test_the_guides_have_as_many_rows_as_are_judged(bench, rows, page):
    text = (ROOT / "docs" / page).read_text("utf-8")
    block = text.partition("<!-- bench:plan -->\n")[2].partition("<!-- end -->")[0]
    told = [line for line in block.splitlines() if re.match(r"\| (LitGPT|torchtune|PEFT|LLaMA)", line)]
    assert len(told) == sum(not row.out for row in rows)


@pytest.mark.parametrize("page", ["plan.md", "plan.zh.md"])
def test_the_worked_example_is_what_the_arithmetic_says(page):
    from danlu.plan.kinds import KINDS
    from danlu.plan.memory import Job, estimate
    from danlu.plan.models import shape_of
    from danlu.plan.presets import PRESETS

    text = (ROOT / "docs" / page).read_text("utf-8")
    found = estimate(Job(shape_of("Llama-2-7B"), "lora", 1, 2048, r=8))
    each = found.of("activations") / 32 / 2048
    assert f"{each:,.0f}" in text
    assert f"× 32 × 2,048 = {found.of('activations') / 1e9:.2f} GB" in text
    assert found.of("logits") == 0
    assert f"{found.of('way back') / 1e9:.2f} GB" in text
    assert "6,738,415,616 × 2 = 13.48 GB" in text
    assert [name for name in (*PRESETS, *KINDS) if f"`{name}`" not in text] == []


def test_runs_are_described_as_recipes_that_are_valid(bench, tmp_path):
    runs = bench[3]
    from danlu.config import validate
    from danlu.steps.kinds import KINDS

    all_of_them = list(runs.asked())
    assert len(all_of_them) >= 20
    assert len({one.name for one in all_of_them}) == len(all_of_them)
    for one in all_of_them:
        recipe = validate(KINDS[one.kind].alone.recipe, runs._recipe(one, tmp_path), where=one.name)
        assert (recipe.lora is None) == (one.method == "full")
        assert recipe.train.gradient_checkpointing == one.checkpointing


@pytest.mark.parametrize(
    "case",
    [
        ("smollm2-135m", "lora", 2, 256, True),
        pytest.param(("smollm2-135m", "full", 2, 256, False), marks=pytest.mark.slow),
    ],
    ids=lambda case: " ".join(map(str, case)),
)
def test_fake_tensors_count_what_was_planned(bench, case):
    fake = bench[4]
    job = fake.job_of(*case)
    assert estimate(job).total == pytest.approx(fake.counted(case[0], job), rel=0.05)


def test_what_is_freed_is_not_counted_on(bench):
    with bench[4].living() as held:
        kept = torch.ones(1000)
        for _ in range(3):
            torch.ones(250)
        view = kept[:10]
    assert view.untyped_storage().nbytes() == held.now == 4000
    assert held.most == 5000


def test_the_grid_changes_one_thing_at_a_time(bench):
    from danlu.config import validate
    from danlu.recipe import Recipe

    planned = {
        "name": "n", "model": {"name": "m"}, "data": {"path": "rows.jsonl", "held_out": 5},
        "lora": {"r": 8, "lora_alpha": 16}, "train": {"learning_rate": 1e-3, "num_train_epochs": 2},
    }  # fmt: skip
    grid = bench[5].around(planned)
    assert list(grid) == [
        "as planned", "learning_rate: 0.000333", "learning_rate: 0.003", "r: 2", "r: 32", "num_train_epochs: 1",
        "num_train_epochs: 4",
    ]  # fmt: skip
    for name, recipe in grid.items():
        options = validate(Recipe, recipe, where=name)
        assert options.lora.lora_alpha == 2 * options.lora.r
    losses = dict.fromkeys(grid, 2.0) | {"r: 32": 1.0}
    assert "| as planned | 2.000 | +100.0% |" in bench[5].block(losses, "en")
