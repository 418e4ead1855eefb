"""One run's options, and what can be checked of them before anything is computed or touched.

Each section's options stand beside the code that uses them; the steps are in run.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from danlu.config import Options, PathText
from danlu.data.source import DataOptions
from danlu.device import Device
from danlu.errors import ConfigError, DataError, DiskError, nearest, size_in_words
from danlu.hub import cache_directory, resolve
from danlu.journal import Journal, check_replaceable, is_run
from danlu.model.lora_options import LoraOptions
from danlu.model.named import ModelOptions
from danlu.quantize.merge import MergeOptions, check_merge
from danlu.track.tracking import TrackOptions, check_trackers
from danlu.train.loop import TrainOptions
from danlu.train.optim import ROUNDED, check_optimizer
from danlu.train.schedule import PLATEAU

# A full tuning's rate is LoRA's by this (the sweep of Thinking Machines' tinker-cookbook, 2026).
FULL_TUNING = 10


KIND = "which training it is: pretrain, sft, reward, dpo, ppo"


class LossProof(Options):
    """The held-out loss, before and after."""


class ProveOptions(LossProof):
    """How the held-out examples are measured, before and after."""

    questions: int = Field(64, ge=0, description="held-out questions answered greedily, for the overlap")
    examples: int = Field(10, ge=0, description="of them shown side by side in the report")
    max_new_tokens: int = Field(48, ge=1, description="tokens of an answer at most")


class RunOptions(Options):
    """Where a run stands, and what all of it shares."""

    name: str = Field(
        "run",
        pattern=r"^[\w][\w.-]*$",
        description="the run directory is runs/NAME: letters (any script), digits, . _ and -, without spaces",
    )
    runs: PathText = Field("runs", description="folder that holds the run directories")
    seed: int = Field(42, ge=0, lt=2**32, description="of the split, the order, the adapter and the dropout")
    resume: bool | Literal["auto"] = Field(
        False, description="go on with the last checkpoint of this run; auto: if there is such a run, else begin one"
    )

    @property
    def directory(self) -> Path:
        return Path(self.runs) / self.name


class TrainingSections(Options):
    """A training, from data to an adapter, or a whole model, and its proof."""

    model: ModelOptions = Field(default_factory=ModelOptions)
    data: DataOptions
    lora: LoraOptions | None = Field(default_factory=LoraOptions, description="null: all weights are trained")
    train: TrainOptions = Field(default_factory=TrainOptions)
    prove: LossProof | None = Field(default_factory=LossProof)
    merge: MergeOptions | None = None
    track: TrackOptions = Field(default_factory=TrackOptions)

    @model_validator(mode="before")
    @classmethod
    def _whole_model(cls, given: Any) -> Any:
        """Where all weights are trained there is nothing to merge, and the usual rate is a tenth of LoRA's."""
        if not isinstance(given, dict) or given.get("lora", cls.model_fields["lora"].default) is not None:
            return given
        train = given.get("train")
        if train is None or (isinstance(train, dict) and "learning_rate" not in train):
            usual = cls.model_fields["train"].get_default(call_default_factory=True).learning_rate
            train = {**(train or {}), "learning_rate": usual / FULL_TUNING}
        return {"merge": None, **given, "train": train}

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if self.lora is None and self.merge is not None:
            raise ValueError("merge has no effect with lora: null, which leaves a whole model; set merge: null")
        if self.lora is None and self.model.load_in_4bit:
            raise ValueError(
                "model.load_in_4bit holds weights that are not trained; with lora: null all are; leave one out"
            )
        if self.model.adapter is not None:
            raise ValueError("model.adapter cannot be trained on yet; merge it first and name the merged model")
        nothing_held_out = self.data.held_out == 0 and self.data.held_out_path is None
        if self.prove is not None and nothing_held_out:
            raise ValueError("prove needs held-out data: set data.held_out or data.held_out_path, or prove: null")
        if self.train.lr_scheduler_type == PLATEAU and nothing_held_out:
            raise ValueError(f"{PLATEAU} needs held-out data: set data.held_out or data.held_out_path")
        if self.train.loraplus_lr_ratio is not None and self.lora is None:
            raise ValueError("train.loraplus_lr_ratio has no effect with lora: null: there is no B")
        if self.train.optim == ROUNDED and self.lora is not None:
            raise ValueError(
                f"train.optim={ROUNDED} is for training all weights (lora: null); an adapter's are few, and in float32"
            )
        return self


class SftSections(TrainingSections):
    """Supervised fine-tuning."""

    prove: ProveOptions | None = Field(default_factory=ProveOptions)


class TrainingRecipe(TrainingSections, RunOptions):
    """One run, from data to a model and its report. A section left out is a step left out."""

    kind: str = Field(description=KIND)


class Recipe(SftSections, TrainingRecipe):
    """One run of supervised fine-tuning, from data to a merged model and its report."""

    kind: Literal["sft"] = Field("sft", description=KIND)

    merge: MergeOptions | None = Field(default_factory=MergeOptions)

    @field_validator("kind", mode="before")
    @classmethod
    def _is_sft(cls, kind: Any) -> Any:
        if kind != "sft":
            raise ValueError(
                f"{kind!r}: flags make supervised fine-tuning; other kinds stand in a recipe: danlu run FILE"
            )
        return kind


def check_inputs(recipe: TrainingRecipe, device: Device, later: Collection[str] = ()) -> None:
    """What can be known without reading data or weights. Changes nothing on the disk but the cache of models."""
    check_files(recipe, device, later)
    model = resolve(recipe.model.name, cache=cache_directory(), accept_licence=recipe.model.accept_licence)
    if not recipe.resume:
        _check_apart(recipe.directory, {"model.name": model, **{f"data: {path}": path for path in _files(recipe)}})
    if recipe.merge is not None:
        check_merge(model, recipe.merge, device)


def check_files(recipe: TrainingRecipe, device: Device, later: Collection[str] = ()) -> None:
    """What can be known without the model.

    Args:
        later: files that are still to be made.
    """
    directory = recipe.directory
    if recipe.resume and not is_run(directory):
        raise ConfigError(f"{directory}: there is no run to resume", fix="begin it with resume=false, or resume=auto")
    if recipe.resume and Journal(directory).is_of_chain:
        raise ConfigError(f"{directory} holds a run of several steps", fix="choose another name, or leave resume out")
    check_replaceable(directory)
    check_trackers(recipe.track)
    check_optimizer(recipe.train, device.name, device.dtype(recipe.model.dtype))
    for path in _files(recipe):
        if str(path) not in later and not path.exists():
            siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            raise DataError(f"no such file: {path}", fix=nearest(path.name, siblings) or _where_begun(recipe))


def _files(recipe: TrainingRecipe) -> list[Path]:
    return [Path(path) for path in recipe.data.files]


def _where_begun(recipe: TrainingRecipe) -> str:
    begun = next((event for event in Journal(recipe.directory).events() if "folder" in event), None)
    return f"the run was begun in {begun['folder']}; go there" if recipe.resume and begun else "check the path"


def _check_apart(directory: Path, inputs: dict[str, Path]) -> None:
    """No input lies in an earlier run that would be moved aside."""
    place = directory.resolve()
    if not place.exists():
        return
    for what, path in inputs.items():
        if place in (path.resolve(), *path.resolve().parents):
            raise ConfigError(
                f"{what} lies in {directory}, which a new run of that name moves aside",
                fix=f"choose another name, such as name={place.name}-2",
            )


def check_disk(recipe: TrainingRecipe, trained: int, total: int) -> None:
    """Raise DiskError unless what the run will leave has room.

    Checkpoints (trained weights, AdamW's two means of each, and the doctor's best ones), the adapter, and the merged
    model.
    """
    each = 3 + (recipe.train.doctor == "act")
    needed = 4 * trained * (each * (recipe.train.save_total_limit + 1) + 2)
    if recipe.merge is not None:
        needed += 4 * (total - trained)
    place = next(folder for folder in recipe.directory.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DiskError(
            f"{recipe.directory}: up to {size_in_words(needed)} are to be written, {size_in_words(free)} are free",
            fix="free some space, choose another place with runs=FOLDER, or leave the merged model out with merge=null",
        )
