"""Learning from rewards from end to end on a tiny model: with a function, a command, and a reward model."""

import json
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from showing import Lines, Stops
from trainings import metrics, recipe_of

from danlu.errors import ConfigError, DanluError, DataError, Interrupted, TrainingError
from danlu.journal import Journal
from danlu.run import load_recipe, product_of, run


@pytest.fixture
def recipe(folder, tiny_model):
    return partial(recipe_of, "ppo", tiny_model, name="p")


@pytest.mark.parametrize("estimator", ["gae", "rloo", "grpo"])
def test_a_run_says_what_it_saw(recipe, folder, estimator):
    directory = run(recipe(ppo={"advantage_estimator": estimator}), Lines(), "")
    first = Journal(directory).metrics()[0]
    assert first["ratio"] == pytest.approx(1.0, abs=1e-6)
    assert first["kl"] == pytest.approx(0.0, abs=1e-4)  # the adapter says nothing yet
    assert first["engine_ratio"] == pytest.approx(1.0, abs=1e-3)
    assert {"score", "reward", "entropy", "clip_share", "answer_length", "unfinished", "engine_apart"} <= first.keys()
    assert metrics(directory, "kl")[-1] != 0
    results = Journal(directory).results()
    assert {"reward", "kl", "ended"} <= results["before"].keys()
    assert len(results["examples"]) == 2
    weights = load_file(directory / "adapter" / "adapter_model.safetensors")
    assert any(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name)
    assert not any("reward" in name or "value" in name for name in weights)
    assert product_of(recipe()).adapter == "runs/p/adapter"


@pytest.mark.parametrize("after", [2, 3, 5])
def test_a_run_that_is_stopped_goes_on_as_it_would_have(recipe, folder, after):
    whole = run(recipe(name="whole"), Lines(), "")
    with pytest.raises(Interrupted):
        run(recipe(), Stops(after), "")
    run(recipe(resume=True), Lines(), "")
    for name in ("loss", "score", "kl"):
        assert metrics(folder / "runs" / "p", name) == metrics(whole, name)


def test_a_reward_model_judges_on_the_same_base(folder, tiny_model):
    part = {"model": {"dtype": "float32"}, "data": {"path": "pairs.jsonl", "held_out": 6}}
    chain = {
        "name": "c",
        "steps": {
            "reward": {
                "start": str(tiny_model),
                **part,
                "lora": {"r": 4},
                "train": {"batch_size": 8, "learning_rate": 3e-3, "max_steps": 6},
                "reward": {"samples": 16, "max_new_tokens": 6},
                "prove": None,
            },
            "ppo": {
                "start": str(tiny_model),
                **part,
                "rollout": {"max_new_tokens": 6},
                "ppo": {"rollout_batch_size": 16, "num_ppo_epochs": 1, "unfinished_reward": None},
                "train": {"batch_size": 16, "learning_rate": 1e-3, "max_steps": 2},
                "prove": {"questions": 0},
            },
        },
    }
    (folder / "c.yaml").write_text(json.dumps(chain))
    run(load_recipe("c.yaml"), Lines(), "")
    rows = Journal(folder / "runs" / "c" / "ppo").metrics()
    assert abs(rows[0]["score"]) < 3  # on the scale of answers of the model that both began with
    assert rows[0]["ratio"] == pytest.approx(1.0, abs=1e-6)
    config = json.loads((folder / "runs/c/ppo/adapter/adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    assert not (folder / "runs/c/ppo/adapter/reward").exists()
    chain["steps"]["reward"]["train"]["learning_rate"] = 1e-3
    (folder / "c.yaml").write_text(json.dumps(chain))
    lines = Lines()
    run(load_recipe("c.yaml"), lines, "")
    assert "ppo: changed: reads.reward" in lines.said


def test_a_reward_model_of_another_base_is_refused(recipe, folder, tiny_model):
    place = folder / "adapter"
    place.mkdir()
    (place / "adapter_config.json").write_text("{}")
    (place / "reward.json").write_text(json.dumps({"scale": {"mean": 0.0, "deviation": 1.0, "samples": 8}}))
    (place / "origin.json").write_text(json.dumps({"base": "another-model"}))
    with pytest.raises(ConfigError, match="lies on another-model, the policy on"):
        run(recipe(reward={"model": str(place)}), Lines(), "")
    (place / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match="is a whole model: with it there would be two in memory"):
        run(recipe(reward={"model": str(place)}), Lines(), "")
    assert not list((folder / "runs").iterdir())


def test_an_error_of_the_judge_stops_the_run_and_loses_nothing(recipe, folder):
    with pytest.raises(TrainingError, match=r"the judge \(judge.py:faulty\) gave nan for an answer to .*pairs.jsonl:"):
        run(recipe(reward={"function": "judge.py:faulty"}, prove=None), Lines(), "")
    assert Journal(folder / "runs" / "p").events()[-1]["kind"] == "stopped"


FAILS = """
import pathlib, sys
asked = pathlib.Path("asked")

def judge(prompts, completions, references):
    asked.write_text(str(int(asked.read_text()) + 1) if asked.exists() else "1")
    if int(asked.read_text()) == 3:
        raise OSError("the judge's server is gone")
    return [-len(text) for text in completions]
"""


@pytest.mark.parametrize("save_steps", [1, 50])
def test_after_a_judge_is_mended_the_run_goes_on_as_it_would_have(recipe, folder, save_steps):
    """Its third rollout, before step 9, is not judged; whenever it was saved last, nothing has to be made again."""
    (folder / "fails.py").write_text(FAILS)
    given = {"prove": None, "train": {"save_steps": save_steps, "max_steps": 12}}
    whole = run(recipe(name="whole", **given), Lines(), "")
    given["reward"] = {"function": "fails.py:judge"}
    with pytest.raises(TrainingError, match=r"fails.py:judge failed: OSError: the judge's server is gone"):
        run(recipe(**given), Lines(), "")
    lines = Lines()
    run(recipe(resume=True, **given), lines, "")
    assert [row["step"] for row in lines.rows] == [9, 10, 11, 12]
    for name in ("loss", "score", "kl", "grad_norm"):
        assert metrics(folder / "runs" / "p", name) == metrics(whole, name)


def test_a_command_judges(recipe, folder):
    (folder / "judge-lines.py").write_text(
        "import sys, json\nfor line in sys.stdin:\n    print(-len(json.loads(line)['completion']), flush=True)\n"
    )
    directory = run(
        recipe(reward={"command": f"{sys.executable} judge-lines.py"}, train={"max_steps": 2}, prove=None), Lines(), ""
    )
    assert metrics(directory, "score")[0] < 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rollout": {"top_p": 0.9}}, "top_p: answers would be drawn from another distribution"),
        ({"rollout": {"repetition_penalty": 1.2, "top_k": 5}}, "repetition_penalty, top_k: answers"),
        ({"rollout": {"top_q": 0.9}}, "top_q"),
        ({"lora": None}, "lora: null leaves no reference"),
        ({"lora": {"lora_dropout": 0.1}}, "makes the ratio differ from 1"),
        ({"train": {"eval_steps": 3}}, "eval_steps has no effect"),
        ({"train": {"lr_scheduler_type": "reduce_on_plateau"}}, "there is no held-out loss to follow"),
        ({"reward": {}}, "nobody judges"),
        ({"reward": {"function": "a.b:c", "command": "d"}}, "name one judge"),
        ({"reward": {"command": "d", "function_options": {"a": 1}}}, "function_options has no effect"),
        ({"reward": {"command": "judge 'x"}}, "No closing quotation"),
        ({"reward": {"command": " "}}, "command is empty"),
        ({"reward": {"judge": "me"}}, "judge"),
    ],
)
def test_what_cannot_be_or_has_no_effect_is_refused(recipe, changes, said):
    with pytest.raises(ConfigError, match=said):
        recipe(**changes)


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ({"function": "judge.py:shrot"}, r"reward.function: no function 'shrot' in judge.py\n.*short"),
        ({"function": "judge.py:short", "function_options": {"wieght": 2}}, "unexpected keyword argument 'wieght'"),
        ({"function": "judge.py:alone"}, "judge.py:alone: missing a required argument: 'lonely'"),
        ({"function": "nowhere.py:short"}, "nowhere.py cannot be imported"),
        ({"command": "no-such-judge --fast"}, "there is no command 'no-such-judge'"),
        ({"model": "nowhere"}, "nowhere is no reward model: it has no reward.json"),
        ({"model": "empty"}, "empty is no reward model: it has no reward.json"),
    ],
)
def test_a_judge_that_cannot_judge_is_told_before_anything_is_touched(recipe, folder, reward, said):
    (folder / "empty").mkdir()
    with (folder / "judge.py").open("a") as file:
        file.write("def alone(lonely, prompts, completions, references): ...\n")
    with pytest.raises(DanluError, match=said):
        run(recipe(reward=reward), Lines(), "")
    assert not list((folder / "runs").iterdir())


TELLS = """
import json, pathlib

def tells(prompts, completions, references):
    with open("told.jsonl", "a") as file:
        for prompt, reference in zip(prompts, references):
            file.write(json.dumps([[turn["content"] for turn in prompt], reference]) + "\\n")
    return [0.0] * len(completions)
"""
EARLIER = [("user", "hi"), ("assistant", "hello")]


def turns(*said):
    return [{"role": role, "content": content} for role, content in said]


@pytest.mark.parametrize(
    ("row", "asked", "reference"),
    [
        ({"prompt": "how many?"}, ["how many?"], ""),
        ({"prompt": turns(*EARLIER, ("user", "and now?"))}, ["hi", "hello", "and now?"], ""),
        ({"messages": turns(*EARLIER, ("user", "and now?"))}, ["hi", "hello", "and now?"], ""),
        ({"messages": turns(*EARLIER)}, ["hi"], "hello"),
        ({"conversations": [{"from": "human", "value": "how many?"}]}, ["how many?"], ""),
        ({"question": "how many?"}, ["how many?"], ""),
        ({"question": "how many?", "answer": "4"}, ["how many?"], "4"),
        ({"prompt": "how many?", "completion": None}, ["how many?"], ""),
        ({"prompt": "how many?", "completion": "", "system": "be brief"}, ["be brief", "how many?"], ""),
        ({"instruction": "how many?", "input": "1, 2"}, ["how many?\n\n1, 2"], ""),
    ],
)
def test_a_prompt_needs_no_answer(recipe, folder, row, asked, reference):
    (folder / "tells.py").write_text(TELLS)

    def nth(at):
        text = json.dumps(row)
        return json.loads(text.replace("how many?", f"{at}: how many?").replace('hi"', f'{at}: hi"'))

    (folder / "pairs.jsonl").write_text("".join(json.dumps(nth(at)) + "\n" for at in range(12)))
    made = recipe(reward={"function": "tells.py:tells"}, data={"held_out": 3}, train={"max_steps": 1})
    directory = run(made, Lines(), "")
    told = [json.loads(line) for line in (folder / "told.jsonl").read_text().splitlines()]
    assert len(told) == 3 + 16 + 3  # held out before and after, and a rollout
    for texts, other in told:
        assert [text.split(": ", 1)[-1] for text in texts] == asked
        assert other == reference
    assert Journal(directory).results()["data"]["train"] == 9


def test_a_table_of_prompts_alone(recipe, folder):
    (folder / "prompts.csv").write_text("prompt\n" + "".join(f"how many is {at}?\n" for at in range(12)))
    directory = run(recipe(data={"path": "prompts.csv", "held_out": 3}, train={"max_steps": 1}), Lines(), "")
    assert Journal(directory).results()["data"] | {"train": 9, "held_out": 3} == Journal(directory).results()["data"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": ""}, "prompt: the user turn is empty"),
        ({"messages": []}, "messages is empty"),
        ({"ask": "how many?"}, "the keys match no format: ask"),
        ({"text": "a document"}, "a document asks nothing"),
    ],
)
def test_what_asks_nothing_is_refused_before_anything_is_touched(recipe, folder, row, said):
    (folder / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=said) as caught:
        run(recipe(data={"held_out": 0}, prove=None), Lines(), "")
    assert "pairs.jsonl:1" in caught.value.seen
    assert not list((folder / "runs").iterdir())


@pytest.mark.parametrize(
    ("options", "longest"),
    [
        ({"mask_unfinished": True}, 1),  # every answer is cut off
        ({"mask_unfinished": True, "advantage_estimator": "grpo"}, 1),
        ({"drop_equal_groups": True, "advantage_estimator": "grpo"}, 6),
        ({"advantage_estimator": "rloo", "kl_coef": 0}, 6),
    ],
)
def test_of_a_rollout_in_which_nothing_teaches_nothing_is_learnt(recipe, folder, options, longest):
    with (folder / "judge.py").open("a") as file:
        file.write("def alike(completions, **_):\n    return [1.0] * len(completions)\n")
    given = {"ppo": options, "rollout": {"max_new_tokens": longest}, "prove": None, "train": {"max_steps": 2}}
    directory = run(recipe(reward={"function": "judge.py:alike"}, **given), Lines(), "")
    assert metrics(directory) == [0.0, 0.0]
    assert metrics(directory, "grad_norm") == [0.0, 0.0]
    if "advantage_estimator" in options:
        assert metrics(directory, "equal_groups") == [1.0, 1.0]


def test_only_the_adapter_of_the_policy_is_trained(recipe, folder):
    made = recipe(train={"max_steps": 1}, prove=None)
    directory = run(made, Lines(), "")
    state = torch.load(directory / "checkpoints" / "step-000001" / "state.pt", weights_only=True)
    assert all("lora_" in name or name == "value.weight" for name in state["trainable"])
