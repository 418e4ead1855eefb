"""Pre-training on plain text, from random weights or continued: what it learns from and what is measured.

Documents go to the disk as token ids, once, and are mapped from there: a corpus may be larger than memory, and a run
that is resumed takes up the very documents that come next. The order of a run is training.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from danlu.config import Options
from danlu.data.batches.corpus import Corpus, write_corpus
from danlu.data.example import Example
from danlu.data.records import Record, Skipped, Text
from danlu.data.source import DataOptions, ReplayOptions, fingerprints, stream
from danlu.device import Device
from danlu.errors import DataError
from danlu.evaluate.held_out import Measured, example_losses
from danlu.fingerprint import of_value
from danlu.hub import cache_directory
from danlu.journal import Draft
from danlu.model.lora_options import LoraOptions
from danlu.model.named import load_random
from danlu.recipe import KIND, TrainingRecipe, TrainingSections
from danlu.steps.parts import Parts, Proof
from danlu.steps.prepare import (
    Base,
    Sizes,
    as_trained,
    describe,
    digest_of,
    identity_of,
    keys_of,
    load_base,
    make_trainable,
    saver_of,
    with_chat,
)
from danlu.steps.prove import check_provable, group_of
from danlu.steps.step import Show
from danlu.steps.training import TrainingStep, training_kind
from danlu.train.batches import ByTokens
from danlu.train.sft import refuse_unknown_tokens, sft_examples, sft_stage


class PretrainOptions(Options):
    """Where pre-training begins."""

    weights: Literal["pretrained", "random"] = Field(
        "pretrained", description="go on from the model's weights, or begin with random ones in its architecture"
    )
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="with random weights, keys of the model's config.json that are to be otherwise, such as "
        "num_hidden_layers: 6",
    )

    @model_validator(mode="after")
    def _config_has_an_effect(self) -> Self:
        if self.config and self.weights != "random":
            raise ValueError("config has no effect on weights that are there; set weights: random")
        return self


class PretrainData(DataOptions):
    """Documents. A long one is cut into windows, which follow each other."""

    @field_validator("replay")
    @classmethod
    def _is_one_stream(cls, replay: ReplayOptions | None) -> None:
        if replay is not None:
            raise ValueError("documents are read as one stream; name the earlier ones in data.path beside the new")

    too_long: Literal["raise", "skip", "truncate", "window"] = Field(
        "window", description=DataOptions.model_fields["too_long"].description
    )


class PretrainSections(TrainingSections):
    """Pre-training, from documents to a model."""

    data: PretrainData
    pretrain: PretrainOptions = Field(default_factory=PretrainOptions)
    lora: LoraOptions | None = Field(None, description=TrainingSections.model_fields["lora"].description)

    @model_validator(mode="after")
    def _whole_where_random(self) -> Self:
        if self.lora is not None and self.pretrain.weights == "random":
            raise ValueError("lora on random weights leaves most of them random; set lora: null")
        return self


class PretrainRecipe(PretrainSections, TrainingRecipe):
    """One run of pre-training."""

    kind: Literal["pretrain"] = Field("pretrain", description=KIND)


class PretrainStep(PretrainSections, TrainingStep):
    """Pre-training as a step."""


def prepare(recipe: PretrainRecipe, journal: Draft, device: Device, show: Show) -> Parts:
    """All that the training works on; documents stand on the disk beside the run directory until that is opened."""
    base = _load(recipe, device, show)
    skipped = Skipped()
    corpus, held_out = _corpus(recipe, base, journal, skipped, device, show)
    check_provable(recipe.prove, held_out, [])
    ready = make_trainable(recipe, base, (), show)
    tokens = recipe.train.batch_size * recipe.data.max_length
    batches = ByTokens(corpus, corpus.lengths, tokens, recipe.seed)
    identity = identity_of(recipe, ready.model, corpus.made_of) | keys_of("pretrain", recipe.pretrain)
    sizes = Sizes(len(corpus), len(held_out), corpus.tokens, corpus.learnt_tokens)
    describe(recipe, journal, device, ready, sizes, skipped, batches.per_epoch)
    return Parts(
        recipe=recipe,
        device=device,
        show=show,
        ready=ready,
        kind="base" if recipe.pretrain.weights == "random" else None,
        stage=replace(sft_stage(device), name="pretrain"),
        save=saver_of(recipe, base),
        is_fresh=recipe.pretrain.weights == "random",
        batches=batches,
        held_out=held_out,
        identity=identity,
        proof=_proof(recipe, ready.model, held_out, device),
    )


def _load(recipe: PretrainRecipe, device: Device, show: Show) -> Base:
    if recipe.pretrain.weights == "pretrained":
        return load_base(recipe, device, show)
    loaded = load_random(
        as_trained(recipe.model, device),
        recipe.pretrain.config,
        recipe.seed,
        device,
        cache=cache_directory(),
        say=show.say,
    )
    return with_chat(recipe, loaded)


def _proof(recipe: PretrainRecipe, model: Any, held_out: list[Example], device: Device) -> Proof | None:
    if recipe.prove is None:
        return None

    def look() -> Measured:
        return Measured({"loss": example_losses(model, held_out, device, recipe.train.most_tokens)})

    return Proof(look, digest_of(held_out), {"loss": [group_of(example) for example in held_out]})


# -- the corpus --------------------------------------------------------------------------------------------


def _corpus(
    recipe: PretrainRecipe, base: Base, journal: Draft, skipped: Skipped, device: Device, show: Show
) -> tuple[Corpus, list[Example]]:
    """(what is trained on, what is held out), each as windows; those of a run that is resumed are there already."""
    made_of = of_value(
        {
            "data": recipe.data.model_dump(mode="json", exclude={"path", "held_out_path"}),
            "files": list(fingerprints(recipe.data).values()),
            "seed": recipe.seed,
            "tokenizer": repr(sorted(base.loaded.tokenizer.get_vocab().items())),
        }
    )
    there = recipe.directory / "corpus"
    if recipe.resume and there.is_dir() and Corpus(there / "train").made_of == made_of:
        return Corpus(there / "train"), list(Corpus(there / "held_out"))

    def made() -> Path:
        folder = journal.folder(recipe.directory, "corpus")
        trained, aside = stream(recipe.data, recipe.seed, skipped)
        write_corpus(folder / "train", _windows(recipe, base, trained, skipped), made_of)
        write_corpus(folder / "held_out", _windows(recipe, base, aside, skipped), made_of)
        return folder

    folder = device.processes.led(made)
    corpus, held_out = Corpus(folder / "train"), Corpus(folder / "held_out")
    if changed := skipped.summary():
        show.say(f"data: {changed}")
    show.say(f"data: {corpus.tokens:,} tokens in {len(corpus):,} windows to train on, {len(held_out):,} held out")
    return corpus, list(held_out)


def _windows(recipe: PretrainRecipe, base: Base, records: Iterator[Record], skipped: Skipped) -> Iterator[Example]:
    data = recipe.data
    examples = sft_examples(
        map(_document, records),
        base.chat,
        max_length=data.max_length,
        too_long=data.too_long,
        window_overlap=data.window_overlap,
        skip=skipped.add if data.on_error == "skip" or data.too_long == "skip" else None,
    )
    for example in examples:
        refuse_unknown_tokens([example], base.loaded.model, base.loaded.tokenizer)
        yield example


def _document(record: Record) -> Record:
    if isinstance(record, Text):
        return record
    raise DataError(
        f"{record.place}: pre-training reads documents; this row is a {type(record).__name__.lower()}",
        allowed='rows with "text", or plain text files',
        fix="use kind: sft for conversations, or name the column of the text with data.columns",
    )


def _check_data(recipe: PretrainRecipe) -> None:
    """Every row is looked at; those that are held out are kept."""
    trained, aside = stream(recipe.data, recipe.seed, Skipped())
    for record in trained:
        _document(record)
    check_provable(recipe.prove, [_document(record) for record in aside], [])


PRETRAIN = training_kind(PretrainStep, PretrainRecipe, prepare, _check_data)
