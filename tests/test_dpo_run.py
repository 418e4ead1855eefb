"""Direct preference optimization from end to end on a tiny model."""

import json
import math
from functools import partial

import pytest
from showing import Lines, Stops
from trainings import metrics, pair, recipe_of

from danlu.errors import ConfigError, DataError, Interrupted
from danlu.journal import Journal
from danlu.run import product_of, run


@pytest.fixture
def recipe(folder, tiny_model):
    return partial(recipe_of, "dpo", tiny_model, name="d")


def talk(*turns):
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]


def test_the_better_answers_become_likelier_than_the_worse_ones(recipe):
    directory = run(recipe(), Lines(), "")
    assert metrics(directory)[0] == pytest.approx(math.log(2), abs=1e-5)  # policy and reference are one
    assert metrics(directory)[-1] < 0.6
    assert metrics(directory, "rewards/accuracies")[-1] == 1.0
    results = Journal(directory).results()
    assert results["before"]["preference_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert results["before"]["preferred"] == 50.0
    assert results["difference"]["preference_loss"]["high"] < 0
    assert results["after"]["preferred"] == 100.0
    assert len(results["examples"]) == 2
    assert product_of(recipe()).adapter == "runs/d/adapter"


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge"])
def test_a_reference_kept_is_the_reference_asked(recipe, loss_type):
    """The adapter off, or its log-probabilities from before training: the same run."""
    asked, kept = (
        metrics(run(recipe(name=name, dpo={"reference": name, "loss_type": loss_type}), Lines(), ""))
        for name in ("adapter_off", "precomputed")
    )
    assert asked == pytest.approx(kept, rel=1e-4)


def test_all_weights_can_be_trained(recipe):
    made = recipe(lora=None, train={"learning_rate": 1e-3})
    directory = run(made, Lines(), "")
    assert metrics(directory)[0] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics(directory)[-1] < metrics(directory)[0]
    assert (directory / "reference.safetensors").is_file()
    assert product_of(made).model == "runs/d/model"
    with pytest.raises(ConfigError, match="adapter_off needs an adapter"):
        recipe(lora=None, dpo={"reference": "adapter_off"})


@pytest.mark.parametrize("reference", ["adapter_off", "precomputed"])
def test_a_run_that_is_stopped_goes_on_as_it_would_have(recipe, folder, reference):
    given = {"dpo": {"reference": reference}, "lora": {"lora_dropout": 0.1}}
    whole = metrics(run(recipe(name="whole", **given), Lines(), ""))
    with pytest.raises(Interrupted):
        run(recipe(**given), Stops(3), "")
    if reference == "precomputed":  # a file cut short is made again
        path = folder / "runs" / "d" / "reference.safetensors"
        path.write_bytes(path.read_bytes()[:20])
    run(recipe(resume=True, **given), Lines(), "")
    assert metrics(folder / "runs" / "d") == whole
    with pytest.raises(ConfigError, match=r"dpo.beta was 0.1 and is 0.2"):
        run(recipe(resume=True, **{**given, "dpo": {"reference": reference, "beta": 0.2}}), Lines(), "")


def test_a_cut_into_micro_batches_changes_nothing(recipe):
    whole, cut = (
        metrics(run(recipe(name=f"m{tokens}", train={"micro_batch_tokens": tokens}), Lines(), ""))
        for tokens in (4096, 60)
    )
    assert whole == pytest.approx(cut, rel=1e-4)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "completion": "b"}, "mixed formats"),
        ({"prompt": "a", "chosen": "b"}, "rejected"),
        (pair(1, rejected="1 quick brown foxes"), "chosen and rejected are the same"),
        (pair(1, prompt=""), "no prompt"),
        (pair(1, prompt=" "), "prompt: the user turn is empty"),
        (pair(1, chosen=""), "chosen: the assistant turn is empty"),
        (pair(1, rejected=" \n"), "rejected: the assistant turn is empty"),
        (pair(1, rejected=None), "preference needs the key 'rejected'"),
        ({"chosen": talk("q", "a"), "rejected": talk("p", "b")}, "open with different messages"),
        ({"chosen": talk("q", "a", "r", "b"), "rejected": talk("q", "a", "s", "b")}, "'r' is not asked in both"),
        (
            pair(1, chosen=talk("q", "a"), rejected=talk("q", "b")),
            "prompt and the messages of chosen and rejected differ",
        ),
        (pair(1, chosen=talk("q"), rejected=talk("p")), "chosen opens with a user turn"),
        ({"text": "a document"}, "mixed formats"),
        (pair(1, prompt="long " * 3000), "over data.max_length=2048"),
        (pair(1, margin="wide"), "margin: 'wide'"),
        (pair(1, margin=-1), "margin: -1"),
        (pair(1, chosen="long " * 3000), "over data.max_length=2048"),
    ],
)
def test_what_is_no_pair_is_refused_before_anything_is_touched(recipe, folder, row, said):
    with (folder / "pairs.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=said) as caught:
        run(recipe(), Lines(), "")
    assert "pairs.jsonl:31" in caught.value.seen
    assert not list((folder / "runs").iterdir())


def test_pairs_that_are_too_long_can_be_left_out(recipe, folder):
    with (folder / "pairs.jsonl").open("a") as file:
        file.write(json.dumps(pair(31, chosen="long " * 3000)) + "\n")
    directory = run(recipe(data={"too_long": "skip"}, train={"max_steps": 1}), Lines(), "")
    assert Journal(directory).results()["data"]["skipped"] == 1


def test_other_data_is_refused(recipe, folder):
    (folder / "pairs.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{at}", "completion": "b"}) + "\n" for at in range(9))
    )
    with pytest.raises(DataError, match="learning from preferences needs two answers; this row is a conversation"):
        run(recipe(), Lines(), "")
