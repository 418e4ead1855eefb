"""Two processes that train together: they learn what one learns, and leave what one leaves."""

import os
import subprocess
import sys

import pytest
import torch
import yaml
from killing import Place
from several import AT_HOME, FSDP, run_in
from showing import Lines
from trainings import RUNS, joined, metrics, recipe_of, run_of

from danlu.data.batches.packing import shares
from danlu.errors import ConfigError
from danlu.journal import Journal
from danlu.processes import Processes
from danlu.run import run

pytestmark = pytest.mark.long

NO_NOISE = {"lora": {"lora_dropout": 0.0}}
# Gradients are added up in another order: rounding, which Adam's first steps make large where a gradient is nearly 0.
NEAR = {"rel": 2e-4, "abs": 2e-5}


def quiet(of, model, **changes):
    """One of RUNS without dropout, which each process draws for itself."""
    plain = {} if of in ("pretrain", "sft, all weights") else NO_NOISE
    return run_of(of, model, **joined(plain, {"name": of.replace(", ", "-").replace(" ", "-"), **changes}))


@pytest.fixture
def model(tiny_model):
    torch.set_num_threads(1)
    return tiny_model


def test_every_stage_learns_the_same_in_two_processes(folder, model):
    alone = {name: quiet(name, model, runs="one") for name in RUNS}
    for recipe in alone.values():
        run(recipe, Lines(), "")
    together = {name: quiet(name, model, runs="two") for name in RUNS}
    assert run_in(2, list(together.values())) == [0, 0]
    for name in RUNS:
        one, two = (runs[name].directory for runs in (alone, together))
        assert len(metrics(two)) == len(metrics(one)), name
        for column in ("loss", "grad_norm", "tokens", "lr"):
            assert metrics(two, column) == pytest.approx(metrics(one, column), **NEAR), (name, column)
        before, after = (Journal(place).results() for place in (one, two))
        assert after.keys() == before.keys() - {"memory_plan"}, name  # which is of one process alone
        assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir()), name


ODD = {
    "an example a step": ("sft", {"train": {"batch_size": 1, "max_steps": 4}}),
    "a last step of fewer": ("reward", {"train": {"batch_size": 23, "max_steps": 4}}),
    "a prompt a rollout": (
        "grpo", {"ppo": {"rollout_batch_size": 4, "num_generations": 4}, "train": {"batch_size": 4, "max_steps": 4}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("settings", [None, FSDP], ids=["whole", "spread"])
def test_a_process_may_have_nothing_to_do(folder, model, settings):
    names = [name for name in ODD if settings is None or ODD[name][0] != "grpo"]
    alone, together = (
        [quiet(ODD[name][0], model, **{**ODD[name][1], "name": f"{at}", "runs": runs}) for at, name in enumerate(names)]
        for runs in ("one", "two")
    )
    for recipe in alone:
        run(recipe, Lines(), "")
    assert run_in(3, together, settings=settings) == [0, 0, 0]
    for name, one, two in zip(names, alone, together, strict=True):
        assert metrics(two.directory) == pytest.approx(metrics(one.directory), **NEAR), name


def test_a_run_goes_on_in_another_number_of_processes(folder, model):
    whole = quiet("dpo, precomputed", model, runs="one")
    run(whole, Lines(), "")
    broken = quiet("dpo, precomputed", model, runs="two")
    codes = run_in(2, [broken], Place(3, 0))
    assert codes[0] == -9
    assert codes[1] == 1, "whoever is left ends as well"
    assert len(metrics(broken.directory)) >= 3
    run(broken.model_copy(update={"resume": True}), Lines(), "")
    assert metrics(broken.directory) == pytest.approx(metrics(whole.directory), **NEAR)
    longer = joined({"train": {"max_steps": 8}}, {"runs": "two", "resume": True})
    assert run_in(3, [quiet("dpo, precomputed", model, **longer)]) == [0, 0, 0]
    assert len(metrics(broken.directory)) == 8


SPREAD = ("pretrain", "sft", "sft, all weights", "reward", "dpo, adapter off", "dpo, precomputed")


def test_weights_that_are_spread_learn_the_same(folder, model):
    alone = {name: quiet(name, model, runs="one") for name in SPREAD}
    for recipe in alone.values():
        run(recipe, Lines(), "")
    together = {name: quiet(name, model, runs="two") for name in SPREAD}
    assert run_in(2, list(together.values()), settings=FSDP) == [0, 0]
    for name in SPREAD:
        one, two = (runs[name].directory for runs in (alone, together))
        for column in ("loss", "grad_norm"):
            assert metrics(two, column) == pytest.approx(metrics(one, column), **NEAR), (name, column)
        assert measured(two) == pytest.approx(measured(one), rel=1e-3), name


def measured(directory):
    return {name: value for name, value in Journal(directory).results()["after"].items() if isinstance(value, float)}


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("sft, all weights", 1),
        ("sft, all weights", 2),
        pytest.param("sft", 1, marks=pytest.mark.slow),
        pytest.param("sft", 2, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_its_weights_spread_and_back(folder, model, name, before):
    whole = quiet(name, model, runs="one")
    first = quiet(name, model, runs="two", train={"max_steps": 4})
    rest = quiet(name, model, runs="two", resume=True)
    # the same plan in both halves
    constant = {"lr_scheduler_type": "constant"}
    whole, first, rest = (
        one.model_copy(update={"train": one.train.model_copy(update=constant)}) for one in (whole, first, rest)
    )
    run(whole, Lines(), "")
    for recipe, size in ((first, before), (rest, 3 - before)):
        codes = run_in(size, [recipe], settings=FSDP if size > 1 else None)
        assert codes == [0] * size
    assert metrics(rest.directory) == pytest.approx(metrics(whole.directory), **NEAR)


def test_who_leads_says_that_another_has_ended_and_what_was_saved_stays(folder, model):
    recipe = recipe_of("sft", model, prove=None, train={"save_steps": 1})
    assert run_in(2, [recipe], Place(3, 0), who=1) == [1, -9]
    said = (folder / "said-0").read_text()
    assert "another process of this run has ended" in said
    assert "resume=true" in said
    run(recipe.model_copy(update={"resume": True}), Lines(), "")
    assert len(metrics(recipe.directory)) == 6


def test_a_fault_of_the_data_ends_all(folder, model):
    (folder / "chats.jsonl").write_text('{"prompt": "a"}\n' * 20)
    recipe = recipe_of("sft", model)
    assert run_in(2, [recipe]) == [1, 1]
    assert all((folder / f"said-{rank}").read_text().startswith("DataError") for rank in range(2))
    assert not recipe.directory.exists()


@pytest.mark.parametrize(
    ("settings", "changes", "said"),
    [
        ({"FSDP_VERSION": "1"}, {}, "fsdp_version: 2"),
        ({}, {"train": {"optim": "adamw_8bit"}}, "cannot be put together from parts"),
        ({}, {"model": {"dtype": "float16"}}, "model.dtype=bfloat16 or float32"),
    ],
    ids=["version", "optimizer", "format"],
)
def test_what_cannot_be_had_with_spread_weights_is_said(folder, model, monkeypatch, settings, changes, said):
    for name, value in {**FSDP, **settings}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("danlu.device.here", lambda: Processes(0, 2))
    with pytest.raises(ConfigError, match=said):
        run(recipe_of("sft", model, **changes), Lines(), "")
    assert not (folder / "runs" / "sft").exists()


def test_one_process_spreads_nothing(folder, model, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="there is one"):
        run(recipe_of("sft", model), Lines(), "")


def test_noise_is_drawn_by_each_for_itself_and_disturbs_nothing():
    def drawn(rank):
        torch.manual_seed(0)
        with Processes(rank, 2).own_noise():
            noise = torch.rand(4)
        return noise, torch.rand(4)

    (one, after), (other, also_after) = drawn(0), drawn(1)
    assert not torch.equal(one, other)
    assert torch.equal(after, also_after)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_hold_everything_once_and_about_as_many_tokens(count):
    lengths = [5, 90, 3, 40, 41, 7, 60, 2, 33, 12]
    dealt = shares(lengths, count)
    assert sorted(index for share in dealt for index in share) == list(range(10))
    sums = [sum(lengths[index] for index in share) for share in dealt]
    assert max(sums) <= max(max(lengths), sum(lengths) / count + max(lengths) / 2)


def launched(folder, *arguments, size=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    return subprocess.run(
        [*command, "-m", "danlu", *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, **AT_HOME, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_torchrun_starts_them(folder, model):
    recipe = recipe_of("sft", model, train={"max_steps": 2})
    document = recipe.model_dump(mode="json", exclude={"resume"})
    (folder / "r.yaml").write_text(yaml.safe_dump(document))
    found = launched(folder, "run", "r.yaml")
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("step 2/2") == 1
    assert found.stdout.count("report:") == 1
    assert len(metrics(recipe.directory)) == 2


def test_a_process_ends_without_its_interpreter(folder):
    script = """
import atexit, sys
class Late:
    def __del__(self):
        print("the interpreter ended")
sys.late = Late()
atexit.register(print, "all is told")
from danlu.cli import main
main(["models"])
"""
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env={**os.environ, "RANK": "1", "WORLD_SIZE": "2"},
    )  # fmt: skip
    assert found.stdout == "all is told\n"


def test_other_commands_say_that_they_work_alone(folder):
    found = launched(folder, "models")
    assert found.returncode
    assert found.stderr.count("danlu models works in one process; 2 were started") == 1


def test_what_one_raises_all_raise():
    class Three(Processes):
        def gathered(self, value):
            return [value, ConfigError("no card", fix="get one"), None]

    with pytest.raises(ConfigError, match="process 1: no card"), Three(0, 3).together():
        pass
