"""Seconds of each optimizer step of a Trainer. Runs in TRL's own environment."""

import time

from transformers import TrainerCallback


class Clock(TrainerCallback):
    """Seconds of each optimizer step, its data loading included."""

    def __init__(self):
        self.seconds, self.last = [], None

    def on_train_begin(self, *args, **kwargs):
        self.last = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now
