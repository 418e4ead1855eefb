"""What a kind of training brings: everything that one works on, made before anything on the disk is touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.data.records import Message
from danlu.device import Device
from danlu.evaluate.held_out import Measured, Question
from danlu.hub import Kind as ModelKind
from danlu.journal import Draft, Hearer, Journal
from danlu.recipe import TrainingRecipe
from danlu.steps.prepare import Ready
from danlu.steps.step import Show
from danlu.train.batches import Batches
from danlu.train.learner import Stage


@dataclass(frozen=True)
class Proof:
    """What is measured before and after.

    Attributes:
        look: measures the model as it stands.
        name: of what is measured; equal where the same is.
        groups: measure -> the group of each of its items.
        questions: those whose answers are looked at.
        shown: of them, how many stand side by side in the report.
    """

    look: Callable[[], Measured]
    name: str
    groups: Mapping[str, Sequence[str]]
    questions: Sequence[Question] = ()
    shown: int = 0

    @property
    def items(self) -> int:
        """Of the first measure."""
        return len(next(iter(self.groups.values())))


@dataclass
class Parts:
    """Everything that a training works on, made and checked before anything on the disk is touched.

    Attributes:
        ready: the model, with what is trained on it.
        kind: of what is trained: who learns answers learns to end them; of texts nothing is known.
        save: (model, directory) -> what was trained, on the disk.
        held_out: examples that the stage looks at while it trains.
        identity: what has to be the same when the run is resumed.
        proof: None where nothing is to be proved.
        is_fresh: whether the model's weights began at random.
        begin: what is computed first, once the run directory is there.
        end: gives back what it holds; called however the run ends.
        may_learn_nothing: what it learns from may be all alike, so that no weight ever has a gradient.
        hearer: who is told of the run while it goes on.
    """

    recipe: TrainingRecipe
    device: Device
    show: Show
    ready: Ready
    kind: ModelKind | None
    stage: Stage[Any, Any]
    save: Callable[[Any, Path], None]
    batches: Batches[Any]
    held_out: Sequence[Any]
    identity: dict[str, str]
    proof: Proof | None
    is_fresh: bool = False
    begin: Callable[[Journal], None] = lambda _journal: None
    end: Callable[[], None] = lambda: None
    may_learn_nothing: bool = False
    hearer: Hearer | None = None

    @property
    def journal(self) -> Journal:
        """Of the run directory, which may not be there yet."""
        return Journal(self.recipe.directory, self.hearer)

    @property
    def questions(self) -> list[Sequence[Message]]:
        """What is asked in the proof."""
        return [question.messages for question in self.proof.questions] if self.proof is not None else []


Prepare = Callable[[Any, Draft, Device, Show], Parts]
