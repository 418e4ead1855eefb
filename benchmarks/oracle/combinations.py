"""Draws prompts and knobs for make_golden.py: seeded, with values that bite. Knows nothing of transformers.

Eos ids, bans and phrases are drawn from the tokens that the model finds likely, so that sequences end early,
bans change the answer and phrases are worth saying.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

STRATEGIES = ("greedy", "beam", "group", "constrained")
COMMON = ("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens", "max_length")
BEAM = ("length_penalty", "early_stopping", "num_return_sequences")
WARPERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
Rehearsal = Callable[[list[int], dict[str, Any]], list[list[int]]]  # prompt, knobs -> sequences
BANS = ("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "min_new_tokens")


@dataclass
class Draft:
    """A prompt, and the likeliest tokens of each step of its plain greedy continuation, best first."""

    prompt: list[int]
    likely: list[list[int]]
    vocab: int

    @property
    def path(self) -> list[int]:
        return [step[0] for step in self.likely]

    def token(self, random: Random, ranks: int = 4) -> int:
        return random.choice(random.choice(self.likely[:12])[:ranks])


def draw_prompt(random: Random, draft: Callable[[list[int]], Draft]) -> list[int]:
    """3 to 40 ids. Half of the longer ones hold pieces of the model's own answer, for penalties and bans to meet."""
    length = random.choice([random.randint(3, 12), random.randint(17, 40)])
    prompt = [random.randrange(3, 320) for _ in range(length)]
    if length > 16 and random.random() < 0.5:
        path = draft(prompt).path
        for _ in range(2):
            start, size = random.randrange(10), random.randint(2, 5)
            place = random.randrange(length - size)
            prompt[place : place + size] = path[start : start + size]
    return prompt


def draw_row(
    random: Random, draft: Draft, strategy: str, number: int, *, rehearse: Rehearsal, short: bool
) -> dict[str, Any]:
    """Prompt and knobs. The first rows of a strategy set one knob alone, the others two to seven together."""
    pool = COMMON if strategy == "greedy" else COMMON + BEAM
    if number <= len(pool) and not short:
        chosen = set(pool[number - 1 : number]) if number else set()
    else:
        chosen = set(random.sample(pool, random.randint(2, min(7, len(pool)))))
        if strategy != "greedy" and random.random() < 0.4:
            chosen |= {"length_penalty", "early_stopping"}  # when to stop depends on both
    if {"min_length", "min_new_tokens"} <= chosen:
        chosen.remove(random.choice(["min_length", "min_new_tokens"]))  # one overrules the other, with a warning
    new_tokens = random.randint(5, 9) if short else random.randint(8, 24)
    knobs = draw_beams(random, strategy)
    prompt, phrases = draft.prompt, []
    if strategy == "constrained":
        phrases = draw_constraints(random, draft, knobs, both=len(chosen) > 2)
        if len(prompt) > 8 and random.random() < 0.2:  # the reference counts what the prompt already says
            phrase = random.choice(phrases)
            said = phrase[: random.randint(1, len(phrase))]
            place = random.choice([len(prompt) - len(said), random.randrange(len(prompt) - len(said))])
            prompt = prompt[:place] + said + prompt[place + len(said) :]
    for name in (*COMMON[:-1], *BEAM):
        if name in chosen:
            knobs[name] = draw_knob(random, draft, name, new_tokens, knobs)
    if "max_length" in chosen:
        knobs["max_length"] = len(prompt) + new_tokens
    else:
        knobs["max_new_tokens"] = new_tokens
    bare = without_ends(knobs)
    said = rehearse(prompt, bare | {"eos_token_id": None, "pad_token_id": None})
    taken = {token for phrase in phrases for token in phrase}
    draws = [draw_ends(random, said, draft, taken) for _ in range(random.choice([1, 6]))]
    ends = draws[0]
    if len(draws) > 1:
        ends = max(draws, key=lambda one: interest(rehearse, prompt, bare | one))
    return {"strategy": strategy, "prompt": prompt, "knobs": ends | knobs}


def draw_stopping_row(random: Random, draft: Draft, strategy: str, *, rehearse: Rehearsal) -> dict[str, Any] | None:
    """A row of few beams on which the three rules of early_stopping do not all agree; None if none was met."""
    for _ in range(12):
        knobs = {"num_beams": random.choice([2, 3]), "max_new_tokens": 24}
        if strategy == "group":
            knobs |= {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": random.choice([0.3, 1.0])}
        knobs |= {"length_penalty": random.choice([0.5, 1.0, 2.0])}
        said = rehearse(draft.prompt, knobs | {"eos_token_id": None, "pad_token_id": None})
        knobs |= draw_ends(random, said, draft, taken=set())
        rules = random.sample([True, False, "never"], 3)
        answers = [str(rehearse(draft.prompt, knobs | {"early_stopping": rule})) for rule in rules]
        for rule, one in zip(rules, answers, strict=True):
            if answers.count(one) == 1:  # the one rule that stands apart
                return {"strategy": strategy, "prompt": draft.prompt, "knobs": knobs | {"early_stopping": rule}}
    return None


def without_ends(knobs: dict[str, Any]) -> dict[str, Any]:
    """The same search free to end, all its beams returned: what an eos may be chosen by."""
    kept = {name: value for name, value in knobs.items() if name not in ("min_length", "min_new_tokens")}
    return kept | ({"num_return_sequences": knobs["num_beams"]} if "num_beams" in knobs else {})


def interest(rehearse: Rehearsal, prompt: list[int], knobs: dict[str, Any]) -> tuple[int, int, int]:
    """How many rules of stopping give different answers; how many sequences end in eos; how long they are."""
    eos = knobs["eos_token_id"]
    stops = {eos} if isinstance(eos, int) else set(eos or ())
    sequences = rehearse(prompt, knobs)
    answers = {str(sequences)}
    if "early_stopping" in knobs:
        answers |= {str(rehearse(prompt, knobs | {"early_stopping": rule})) for rule in (True, False, "never")}
    return len(answers), sum(one[-1] in stops for one in sequences), sum(map(len, sequences))


def draw_ends(random: Random, said: list[list[int]], draft: Draft, taken: set[int]) -> dict[str, Any]:
    """Eos and pad. One eos, several or none, of tokens that this search says; the more often, the sooner chosen.

    The pad is the eos, an ordinary token, or 0.
    """
    tokens = []
    for sequence in said:
        late = len(sequence) // 2 if taken else 1  # forced phrases first have their say
        tokens += [token for token in sequence[late:] if token not in taken]
    if random.random() < 0.04 or not tokens:
        return {"eos_token_id": None, "pad_token_id": None}
    size = random.choice([1, 1, 1, 2, 3, 6])
    tokens += random.choices(tokens, k=size)  # never too few to choose from
    eos = list(dict.fromkeys(random.sample(tokens, len(tokens))))[:size]
    others = [token for token in (0, draft.token(random), draft.token(random)) if token not in eos]
    pad = eos[0] if random.random() < 0.5 or not others else random.choice(others)
    return {"eos_token_id": eos if len(eos) > 1 else eos[0], "pad_token_id": pad}


def draw_beams(random: Random, strategy: str) -> dict[str, Any]:
    if strategy == "greedy":
        return {}
    if strategy != "group":
        return {"num_beams": random.randint(2, 6)}
    groups = random.choice([2, 2, 3])
    return {
        "num_beams": groups * random.randint(1, 6 // groups),
        "num_beam_groups": groups,
        "diversity_penalty": random.choice([0.3, 0.5, 1.0, 2.5, 8.0]),
    }


def draw_knob(random: Random, draft: Draft, name: str, new_tokens: int, knobs: dict[str, Any]) -> Any:
    if name == "min_length":
        return len(draft.prompt) + random.randint(2, new_tokens)
    choices: dict[str, Callable[[], Any]] = {
        "repetition_penalty": lambda: random.choice([0.8, 1.1, 1.3, 1.8]),
        "no_repeat_ngram_size": lambda: random.choice([1, 2, 2, 3]),
        "bad_words_ids": lambda: draw_bad_words(random, draft),
        "min_new_tokens": lambda: random.randint(2, new_tokens),
        "length_penalty": lambda: random.choice([-1.0, 0.0, 0.5, 1.0, 2.0]),
        "early_stopping": lambda: random.choice([True, False, "never"]),
        "num_return_sequences": lambda: random.randint(2, knobs["num_beams"]),
        "temperature": lambda: random.choice([0.3, 0.7, 1.3, 2.0]),
        "top_k": lambda: random.choice([1, 5, 20, 50]),
        "top_p": lambda: random.choice([0.1, 0.5, 0.9, 0.95]),
        "min_p": lambda: random.choice([0.02, 0.1, 0.3]),
        "typical_p": lambda: random.choice([0.2, 0.5, 0.9]),
    }
    return choices[name]()


def draw_bad_words(random: Random, draft: Draft) -> list[list[int]]:
    """One to four words of one to three tokens, pieces of the plain answer most of the time."""
    words: list[list[int]] = []
    for _ in range(random.randint(1, 4)):
        size, start = random.choice([1, 2, 2, 3]), random.randrange(12)
        word = draft.path[start : start + size]
        if random.random() < 0.3:
            word[-1] = draft.token(random)
        words += [word] if word not in words else []
    return words


def draw_constraints(random: Random, draft: Draft, knobs: dict[str, Any], *, both: bool) -> list[list[int]]:
    """Sets force_words_ids, constraints or both; returns every phrase that they name."""
    kind = random.choice(["words", "words", "objects", "both"] if both else ["words", "objects"])
    items: list[Any] = []
    if kind != "objects":
        knobs["force_words_ids"] = [draw_item(random, draft) for _ in range(random.choice([1, 1, 1, 2, 3]))]
        items += knobs["force_words_ids"]
    if kind != "words":
        made = [draw_item(random, draft) for _ in range(random.choice([1, 1, 2]))]
        items += made
        knobs["constraints"] = [
            {"type": "DisjunctiveConstraint", "nested_token_ids": item}
            if isinstance(item[0], list)
            else {"type": "PhrasalConstraint", "token_ids": item}
            for item in made
        ]
    return [phrase for item in items for phrase in (item if isinstance(item[0], list) else [item])]


def draw_item(random: Random, draft: Draft) -> Any:
    """A phrase, or a choice of phrases none of which begins another."""
    phrase = draw_phrase(random, draft)
    if random.random() < 0.55:
        return phrase
    choice = [phrase]
    while len(choice) < random.choice([2, 3]):
        other = draw_phrase(random, draft)
        if random.random() < 0.5:
            other = phrase[: max(1, len(phrase) - 1)] + other
        if not any(one[: len(other)] == other or other[: len(one)] == one for one in choice):
            choice.append(other)
    return choice


def draw_phrase(random: Random, draft: Draft) -> list[int]:
    phrase: list[int] = []
    for _ in range(random.choice([1, 1, 2, 2, 3, 4])):
        again = phrase and random.random() < 0.15
        token = random.choice(phrase) if again else draft.token(random, 8)
        if random.random() < 0.15:
            token = random.randrange(3, draft.vocab)
        phrase.append(token)
    return phrase


def draw_distribution(random: Random, draft: Draft, number: int) -> dict[str, Any]:
    """History and sampling knobs. top_k is always written out: left unset it is 50."""
    pool = WARPERS + BANS
    if number < len(WARPERS):
        chosen = {pool[number]}
    else:
        chosen = set(random.sample(pool, random.randint(2, 5)))
    new = random.randint(0, 8)
    knobs: dict[str, Any] = {"do_sample": True, "top_k": 0} | draw_ends(random, draft.likely, draft, taken=set())
    if len(WARPERS) <= number < len(WARPERS) + 3:
        knobs["num_beams"] = random.randint(2, 4)
        chosen |= {random.choice(WARPERS)}
    for name in pool:
        if name in chosen:
            knobs[name] = draw_knob(random, draft, name, 10, knobs)
    return {"ids": draft.prompt + draft.path[:new], "prompt_length": len(draft.prompt), "knobs": knobs}
