"""How long towers learn: the training room's options. Importing it loads torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from danlu.train.doctor import Mode
from danlu.train.loop import TrainOptions
from danlu.train.schedule import SchedulerName


class TowerTrainOptions(TrainOptions):
    """Training of the towers; as for language models, with what suits a small model that begins at random."""

    learning_rate: float | Literal["auto"] = Field(
        1e-3, description=TrainOptions.model_fields["learning_rate"].description
    )
    lr_scheduler_type: SchedulerName = Field(
        "linear", description=TrainOptions.model_fields["lr_scheduler_type"].description
    )
    num_train_epochs: float = Field(30.0, gt=0, le=1000, description="passes over all histories; small data want many")
    batch_size: int = Field(256, ge=1, description="histories of one optimizer step")
    micro_batch_tokens: Annotated[int, Field(ge=1)] = Field(
        1024, description="events of one forward pass at most; lower it when memory is short, results stay"
    )
    weight_decay: float = Field(0.0, ge=0, lt=1, description=TrainOptions.model_fields["weight_decay"].description)
    save_steps: int = Field(1000, ge=1, description="steps between two checkpoints")
    doctor: Mode = Field("off", description=TrainOptions.model_fields["doctor"].description)
