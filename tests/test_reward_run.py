"""A reward model from end to end on a tiny model."""

import json
import math
from functools import partial

import pytest
import torch
from adapting import plain_model
from rounding import of_sums
from showing import Lines, Stops
from trainings import metrics, pair, recipe_of

from danlu.chain import Chain
from danlu.errors import ConfigError, Interrupted
from danlu.hub import quiet_transformers
from danlu.journal import Journal
from danlu.model.adapters import attach
from danlu.model.lora_options import LoraOptions
from danlu.model.score_head import read_scale
from danlu.run import load_recipe, product_of, run
from danlu.train.policy import put_reward


@pytest.fixture
def recipe(folder, tiny_model):
    return partial(recipe_of, "reward", tiny_model, name="w")


@pytest.mark.parametrize("lora", [{"r": 4}, None])
def test_it_learns_to_judge_and_says_how_well(recipe, lora):
    made = recipe(lora=lora)
    directory = run(made, Lines(), "")
    assert metrics(directory)[-1] < 0.3 < metrics(directory)[0]
    results = Journal(directory).results()
    assert results["difference"]["preference_loss"]["high"] < 0
    figures = results["reward"]
    assert figures["accuracy"] == 1.0
    assert figures["chosen"] > figures["rejected"]
    assert 0 <= figures["calibration_error"] < 1
    assert sum(pairs for _, _, pairs in figures["bins"]) == 6
    product = product_of(made)
    assert product.judges
    scale = read_scale(directory / ("adapter" if lora else "model"))
    assert (scale.mean, scale.deviation, scale.samples) == (figures["mean"], figures["deviation"], 16)


def test_a_margin_is_read_from_the_data(recipe, folder):
    plain = metrics(run(recipe(name="plain"), Lines(), ""))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair(at, margin=2.0)) + "\n" for at in range(30)))
    wide = metrics(run(recipe(name="wide"), Lines(), ""))
    assert wide[0] - plain[0] == pytest.approx(math.log1p(math.exp(2)) - math.log(2), abs=0.2)


def test_a_run_that_is_stopped_goes_on_as_it_would_have(recipe, folder):
    whole = run(recipe(name="whole"), Lines(), "")
    with pytest.raises(Interrupted):
        run(recipe(), Stops(3), "")
    run(recipe(resume=True), Lines(), "")
    directory = folder / "runs" / "w"
    assert metrics(directory) == metrics(whole)
    assert Journal(directory).results()["reward"] == Journal(whole).results()["reward"]


def test_a_reward_model_is_not_merged(recipe):
    with pytest.raises(ConfigError, match="merge has no effect on a reward model"):
        recipe(merge={})


def test_in_a_chain_the_next_step_works_on_what_answers(folder, tiny_model):
    part = {"model": {"dtype": "float32"}, "data": {"path": "pairs.jsonl", "held_out": 6}, "prove": None}
    train = {"batch_size": 8, "max_steps": 1}
    chain = {
        "name": "c",
        "steps": {
            "reward": {"start": str(tiny_model), **part, "train": train, "reward": {"samples": 8, "max_new_tokens": 2}},
            "dpo": {"start": str(tiny_model), **part, "train": train},
            "merge": {"max_new_tokens": 2, "prompts": 2},
        },
    }
    (folder / "c.yaml").write_text(json.dumps(chain))
    made = load_recipe("c.yaml")
    assert isinstance(made, Chain)
    run(made, Lines(), "")
    assert product_of(made).model == "runs/c/merge/merged"
    chain["steps"]["merge"]["start"] = "reward"
    (folder / "c.yaml").write_text(json.dumps(chain))
    with pytest.raises(ConfigError, match=r"steps.merge.start: reward leaves a reward model"):
        run(load_recipe("c.yaml"), Lines(), "")


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"head": True}, "lora.head has no effect: a reward model scores"),
        ({"modules_to_save": ["norm"]}, "lora.modules_to_save: a reward model lies beside the policy"),
    ],
)
def test_what_a_reward_model_cannot_have_is_refused(recipe, lora, said):
    with pytest.raises(ConfigError, match=said):
        recipe(lora=lora)


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"use_rslora": True, "rank_pattern": {"q_proj": 3}}])
def test_beside_a_policy_it_judges_as_transformers_and_peft_do(recipe, tiny_model, lora):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    adapter = run(recipe(lora=lora, prove=None), Lines(), "") / "adapter"
    ids = torch.tensor([[5, 60, 7, 200, 9, 31]])
    with quiet_transformers(), torch.no_grad():
        classifier = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
        wanted = PeftModel.from_pretrained(classifier, str(adapter)).eval()(input_ids=ids).logits[0]
        policy = attach(plain_model(tiny_model), LoraOptions(), seed=0).eval()
        put_reward(policy, adapter, str(tiny_model))
        policy.set_adapter("reward")
        found = policy.score(policy.get_base_model().base_model(ids).last_hidden_state[0, -1:])
    assert abs(wanted) > 0.1
    torch.testing.assert_close(found, wanted, rtol=0, atol=of_sums(float(wanted.abs()), terms=64, in_a_row=13))
