"""Requests that go on as written, whatever the scores say, beside the model's own pass over each text they ever are."""

from __future__ import annotations

import random

from danlu.generate.batch.probe import _Play, _Script
from danlu.generate.batch.scheduler import Request
from danlu.generate.search.strategies import Step
from danlu.model.company.check import _apart, alone


def play(prompt, rows=1, steps=4, seed=0, crossing=True):
    """A prompt, and rows that fork and cross at random, or go on side by side."""
    dice = random.Random(seed)
    parents = [[dice.randrange(rows) if crossing else row for row in range(rows)] for _ in range(steps - 1)]
    parents.insert(0, [0] * rows)
    return _Play(tuple(prompt), tuple(Step(each, [dice.randrange(3, 300) for _ in each]) for each in parents))


def asked(core, one, adapter=None):
    """(its script, its request), which the core has."""
    script = _Script(one)
    request = Request(one.prompt, script, lambda scores: scores, adapter=adapter, on_end=script_ended(script))
    core.submit(request)
    return script, request


def script_ended(script):
    script.ends = []
    return script.ends.append


def played(core, *plays, adapters=None):
    """Scripts of requests that were answered side by side."""
    pairs = [asked(core, one, adapter) for one, adapter in zip(plays, adapters or [None] * len(plays), strict=True)]
    while not core.is_idle:
        core.step()
        assert core.store.used_bytes <= core.store.budget_bytes
    assert all(script.ends == [None] for script, _ in pairs)
    return [script for script, _ in pairs]


def distance(model, script):
    """How far the scores that a script heard are from the model's own, as a share of their spread, at the worst."""
    wanted, worst = {}, 0.0
    for text in sorted(script.play.texts, key=len, reverse=True):
        if text not in wanted:
            scores = alone(model, text)
            wanted |= {text[:end]: scores[end - 1 : end] for end in range(len(script.play.prompt), len(text) + 1)}
    assert {text for text, _ in script.heard} == set(script.play.texts)
    for text, scores in script.heard:
        worst = max(worst, float(_apart(scores[None].float(), wanted[text]).max()))
    return worst
