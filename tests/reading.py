"""A small model that learns to read: letters of the standard library's own sentences, in milliseconds a step.

It learns as large ones do: a rate can be too high, too low or right, a few examples are soon known by heart.
"""

import pydoc
import random

import torch

from danlu.device import Device
from danlu.journal import Journal
from danlu.train.batches import Shuffled
from danlu.train.learner import Loss, Stage
from danlu.train.loop import Run, TrainOptions, resumable, train

CPU = Device("cpu", 1, 2**34, False)
LETTERS = " etaonisrhldcumpfgywbvkxjqz.,()'"
SEEN = 8  # letters before the one that is to be told


class Reader(torch.nn.Module):
    """Eight letters -> scores of the next."""

    def __init__(self, width=64, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.letters = torch.nn.Embedding(len(LETTERS), 16)
        self.inner = torch.nn.Linear(16 * SEEN, width)
        self.drop = torch.nn.Dropout(0.02)  # so that the random state matters
        self.head = torch.nn.Linear(width, len(LETTERS))

    def forward(self, text):
        return self.head(self.drop(torch.tanh(self.inner(self.letters(text).flatten(1)))))


def sentences(count, seed=0, *, held_out=False):
    """(count,) numbers of letters, 72 each, from the documentation that Python carries; its last part is held out."""
    things = [str, bytes, dict, list, random.Random, open, int, float, set, memoryview]
    things += [getattr(kind, name) for kind in (str, random.Random, dict, list, set) for name in dir(kind)]
    text = " ".join(" ".join(map(pydoc.getdoc, things)).lower().split())
    known = [LETTERS.index(letter) for letter in text if letter in LETTERS]
    border = len(known) * 4 // 5
    known = known[border:] if held_out else known[:border]
    dice = random.Random(seed)
    starts = [dice.randrange(len(known) - 72) for _ in range(count)]
    return [tuple(known[start : start + 72]) for start in starts]


def reading():
    """The stage."""

    def loss(model, batch):
        windows = torch.tensor(batch).unfold(1, SEEN + 1, 1).flatten(0, 1)
        scores = model(windows[:, :SEEN])
        return Loss(torch.nn.functional.cross_entropy(scores, windows[:, SEEN], reduction="sum"))

    return Stage("reading", len, lambda one: float(len(one) - SEEN), list, loss)


TUNED = {"learning_rate": 4e-2, "batch_size": 8, "max_steps": 60, "save_steps": 1000, "weight_decay": 0.0}


def read(place, *, learnt=2000, seed=0, resume=False, is_fresh=False, on_step=lambda row: None, **options):
    """One run in the directory `place`: (model, journal)."""
    place.mkdir(exist_ok=True, parents=True)
    given = TrainOptions(**{**TUNED, **options})
    journal, model = Journal(place), Reader(seed=seed)
    batches = Shuffled(sentences(learnt, seed), given.batch_size, seed)
    saved = resumable(journal.checkpoints, {}, seed, given, batches.per_epoch) if resume else None
    held_out = sentences(64, seed, held_out=True)
    run = Run(batches, held_out, seed=seed, identity={}, saved=saved, is_fresh=is_fresh, on_step=on_step)
    train(reading(), model, run, given, journal, CPU)
    return model, journal
