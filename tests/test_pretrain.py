"""Pre-training, and a tuning of all weights, from end to end: what they leave, what they refuse, how they go on."""

import json
import math
from functools import partial

import pytest
import torch
from showing import Lines, Stops
from trainings import metrics, recipe_of

from danlu import Engine, GenerationParams
from danlu.config import validate
from danlu.device import read_device
from danlu.errors import ConfigError, DataError, Interrupted
from danlu.journal import Journal
from danlu.model.load import load_model, load_tokenizer, random_model
from danlu.recipe import Recipe
from danlu.run import load_recipe, product_of, run
from danlu.steps.pretrain import PretrainRecipe


@pytest.fixture
def recipe(folder, tiny_model):
    return partial(recipe_of, "pretrain", tiny_model, name="p")


def test_it_learns_its_documents_and_leaves_a_whole_model(recipe):
    directory = run(recipe(), Lines(), "")
    results = Journal(directory).results()
    assert results["difference"]["loss"]["high"] < 0
    assert results["data"]["learnt_tokens"] < results["data"]["tokens"]
    product = product_of(recipe())
    assert (product.model, product.adapter) == (str(directory / "model"), None)
    (answer,) = Engine(product.model, dtype="float32").generate(["the quick"], GenerationParams(max_new_tokens=3))
    assert answer.sequences[0].token_ids


def test_steps_hold_the_tokens_that_they_are_said_to_hold(recipe):
    directory = run(recipe(), Lines(), "")
    tokens = [row["tokens"] for row in Journal(directory).metrics()]
    wanted = 4 * 24
    assert sum(tokens) == 2 * Journal(directory).results()["data"]["tokens"]
    assert all(wanted - 24 < count < 2 * wanted for count in tokens)


def test_random_weights_in_another_shape(recipe, tiny_model):
    shape = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 24}
    directory = run(recipe(pretrain={"weights": "random", "config": shape}), Lines(), "")
    model = load_model(directory / "model", device=read_device(), dtype=torch.float32)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (1, 16)
    first = metrics(directory)[0]
    assert first == pytest.approx(math.log(model.config.vocab_size), rel=0.05)  # nothing is known yet
    assert metrics(directory)[-1] < first - 0.5


def test_random_weights_follow_the_seed(tiny_model):
    device = read_device()
    first, again, other = (
        random_model(tiny_model, {}, seed=seed, device=device, dtype=torch.float32) for seed in (1, 1, 2)
    )
    head = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first.get_parameter(head), again.get_parameter(head))
    assert not torch.equal(first.get_parameter(head), other.get_parameter(head))


def test_what_a_configuration_has_not_or_cannot_be_is_said(tiny_model):
    device = read_device()
    with pytest.raises(ConfigError, match="llama has no num_layers") as caught:
        random_model(tiny_model, {"num_layers": 2}, seed=0, device=device, dtype=torch.float32)
    assert "num_hidden_layers" in caught.value.fix
    with pytest.raises(ConfigError, match="does not fit llama"):
        random_model(tiny_model, {"hidden_size": "wide"}, seed=0, device=device, dtype=torch.float32)


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_run_that_is_stopped_goes_on_with_the_documents_that_come_next(recipe, folder, after, monkeypatch):
    whole = metrics(run(recipe(name="whole"), Lines(), ""))
    with pytest.raises(Interrupted):
        run(recipe(), Stops(after), "")
    monkeypatch.setattr("danlu.steps.pretrain.write_corpus", lambda *_: pytest.fail("the corpus is there"))
    run(recipe(resume=True), Lines(), "")
    assert metrics(folder / "runs" / "p") == whole


def test_changed_documents_are_another_run(recipe, folder):
    with pytest.raises(Interrupted):
        run(recipe(), Stops(4), "")
    with (folder / "texts.jsonl").open("a") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")
    with pytest.raises(ConfigError, match=r"the examples .* changed"):
        run(recipe(resume=True), Lines(), "")
    assert (folder / "runs" / "p" / "corpus").is_dir()
    assert not list((folder / "runs").glob(".p.corpus*"))


def test_what_is_no_document_is_refused_before_anything_is_touched(recipe, folder):
    (folder / "texts.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    with pytest.raises(DataError, match=r"texts.jsonl:1: pre-training reads documents; this row is a conversation"):
        run(recipe(), Lines(), "")
    assert not list((folder / "runs").iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pretrain": {"config": {"num_hidden_layers": 1}}}, "config has no effect on weights that are there"),
        ({"pretrain": {"weights": "random"}, "lora": {"r": 4}}, "lora on random weights"),
        ({"merge": {}}, "merge has no effect with lora: null"),
        ({"prove": {"questions": 3}}, "questions"),
    ],
)
def test_options_without_an_effect_are_refused(recipe, changes, said):
    with pytest.raises(ConfigError, match=said):
        recipe(**changes)


def test_with_lora_it_leaves_an_adapter(recipe):
    directory = run(recipe(lora={"r": 4, "lora_dropout": 0.0}), Lines(), "")
    assert (directory / "adapter" / "adapter_model.safetensors").is_file()
    assert not (directory / "model").exists()


def test_a_flat_recipe_says_its_kind(folder, recipe):
    (folder / "r.yaml").write_text("kind: pretrain\ndata: {path: texts.jsonl}\n")
    assert isinstance(load_recipe("r.yaml"), PretrainRecipe)
    (folder / "s.yaml").write_text("data: {path: texts.jsonl}\n")
    assert type(load_recipe("s.yaml")) is Recipe
    assert isinstance(load_recipe("s.yaml", ["kind=pretrain"]), PretrainRecipe)
    with pytest.raises(ConfigError, match="'pretain' is no kind of training") as caught:
        load_recipe("s.yaml", ["kind=pretain"])
    assert "pretrain" in caught.value.fix


def test_pre_training_then_fine_tuning_of_all_weights_in_a_chain(folder, tiny_model):
    rows = [{"prompt": f"how many is {i}?", "completion": f"{i} foxes"} for i in range(24)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {"batch_size": 8, "learning_rate": 1e-2, "max_steps": 3}
    (folder / "chain.yaml").write_text(
        json.dumps(
            {
                "name": "c",
                "steps": {
                    "pretrain": {
                        "start": str(tiny_model),
                        "model": {"dtype": "float32"},
                        "data": {"path": "texts.jsonl", "held_out": 8, "max_length": 24},
                        "train": train,
                    },
                    "sft": {
                        "model": {"dtype": "float32"},
                        "data": {"path": "chats.jsonl", "held_out": 6},
                        "lora": None,
                        "train": train,
                        "prove": {"questions": 2, "max_new_tokens": 2},
                    },
                },
            }
        )
    )
    chain = load_recipe("chain.yaml")
    run(chain, Lines(), "")
    assert product_of(chain).model == "runs/c/sft/model"
    assert load_tokenizer(folder / "runs/c/sft/model").chat_template
    lines = Lines()
    run(chain, lines, "")
    assert [text for text in lines.said if "done before" in text] == [
        "pretrain: done before, and nothing has changed",
        "sft: done before, and nothing has changed",
    ]


def test_a_full_tuning_starts_at_a_tenth_of_the_rate(folder):
    given = {"data": {"path": "texts.jsonl"}, "lora": None}
    assert validate(Recipe, given, where="t").train.learning_rate == pytest.approx(3e-5)
    assert validate(Recipe, given, where="t").merge is None
    assert validate(Recipe, {**given, "train": {"learning_rate": 1e-3}}, where="t").train.learning_rate == 1e-3
    assert validate(Recipe, given | {"lora": {}}, where="t").train.learning_rate == pytest.approx(3e-4)


def test_flags_are_for_supervised_fine_tuning(folder):
    with pytest.raises(ConfigError, match="'dpo': flags make supervised fine-tuning; other kinds stand in a recipe"):
        validate(Recipe, {"kind": "dpo", "data": {"path": "texts.jsonl"}}, where="t")
