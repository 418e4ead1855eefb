"""What a row has seen, against rescans of all its tokens and transformers' own processors."""

from __future__ import annotations

import random

import pytest
import torch
from transformers.generation import logits_process as hf

from danlu.generate.scores.history import Automaton, History, Prompt, bad_words


def row(prompt: Prompt, generated: list[int]) -> History:
    history = History(prompt)
    for token in generated:
        history.append(token)
    return history


def banned_by(processor: hf.LogitsProcessor, tokens: list[int], vocabulary: int) -> set[int]:
    scores = processor(torch.tensor([tokens]), torch.zeros(1, vocabulary))
    return set((scores[0] == -torch.inf).nonzero()[:, 0].tolist())


def random_tokens(dice: random.Random, length: int, vocabulary: int) -> list[int]:
    return [dice.randrange(vocabulary) for _ in range(length)]


# -- n-grams


def test_ngrams_by_hand():
    history = row(Prompt([1, 2, 3, 1, 2], ngram_size=3), [])
    assert history.banned_by_ngrams() == (3,)
    history.append(4)  # 1 2 3 1 2 4: nothing followed (2, 4) yet
    assert history.banned_by_ngrams() == ()
    for token in (1, 2):
        history.append(token)
    assert set(history.banned_by_ngrams()) == {3, 4}


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ngrams_as_transformers(size):
    dice = random.Random(size)
    for _ in range(30):
        prompt, new = random_tokens(dice, dice.randint(1, 12), 4), random_tokens(dice, dice.randint(0, 12), 4)
        ours = row(Prompt(prompt, ngram_size=size), new).banned_by_ngrams()
        assert set(ours) == banned_by(hf.NoRepeatNGramLogitsProcessor(size), prompt + new, 4)


def test_ngrams_are_off_without_a_size_and_while_the_row_is_short():
    assert row(Prompt([1, 1]), [1, 1]).banned_by_ngrams() == ()
    assert row(Prompt([1], ngram_size=3), []).banned_by_ngrams() == ()
    assert row(Prompt([], ngram_size=3), [1, 1]).banned_by_ngrams() == ()
    assert row(Prompt([], ngram_size=3), [1, 1, 1]).banned_by_ngrams() == (1,)


# -- words to avoid


def test_words_by_hand():
    prompt = Prompt([5, 1], avoided=bad_words([[9], [1, 2], [1, 2, 3], [2, 4]], eos=[0]))
    history = row(prompt, [])
    assert set(history.banned_by_words()) == {9, 2}  # begun in the prompt
    history.append(2)
    assert set(history.banned_by_words()) == {9, 3, 4}
    history.append(7)
    assert history.banned_by_words() == (9,)


def test_words_as_transformers():
    dice = random.Random(1)
    for _ in range(60):
        words = [random_tokens(dice, dice.randint(1, 4), 5) for _ in range(dice.randint(1, 4))]
        if all(word == [0] for word in words):
            continue
        prompt, new = random_tokens(dice, dice.randint(4, 9), 5), random_tokens(dice, dice.randint(0, 9), 5)
        ours = row(Prompt(prompt, avoided=bad_words(words, eos=[0])), new).banned_by_words()
        theirs = hf.NoBadWordsLogitsProcessor(words, eos_token_id=torch.tensor([0]))
        assert set(ours) == banned_by(theirs, prompt + new, 5)


def test_an_entry_that_is_only_the_end_is_dropped():
    assert bad_words([[0], [0, 0], [3]], eos=[0]).sequences == ((0, 0), (3,))


# -- stops


def test_stops_do_not_count_the_prompt():
    prompt = Prompt([1], stops=Automaton([[1, 2], [2], [3, 1, 2]]))
    assert row(prompt, []).stop is None
    assert row(prompt, [2]).stop == (2,)
    assert row(prompt, [3, 1, 2]).stop == (3, 1, 2)
    assert row(prompt, [3, 1, 2, 1]).stop is None
    assert row(Prompt([1]), [2]).stop is None


# -- the automaton


def test_the_automaton_as_a_rescan():
    dice = random.Random(2)
    for _ in range(40):
        sequences = [tuple(random_tokens(dice, dice.randint(1, 4), 3)) for _ in range(dice.randint(1, 5))]
        automaton, stream, node = Automaton(sequences), [], 0
        for token in random_tokens(dice, 30, 3):
            stream.append(token)
            node = automaton.step(node, token)
            text = tuple(stream)
            ending = [one for one in sequences if text[-len(one) :] == one]
            assert automaton.ending(node) == (max(ending, key=len) if ending else None)
            assert set(automaton.completing(node)) == {
                one[-1] for one in sequences if (*text, one[-1])[-len(one) :] == one
            }
            beginnings = {one[:size] for one in sequences for size in range(len(one) + 1)}
            assert automaton.depth[node] == max(len(b) for b in beginnings if text[len(text) - len(b) :] == b)


# -- forks


def test_a_fork_goes_its_own_way():
    prompt = Prompt([1, 2, 3], ngram_size=2, avoided=bad_words([[4, 5]], eos=[]), stops=Automaton([[6, 7]]))
    first = row(prompt, [4])
    second = first.fork()
    first.append(6)
    second.append(1)
    assert (first.generated, second.generated) == ([4, 6], [4, 1])
    assert second.prompt is prompt
    assert (first.banned_by_ngrams(), second.banned_by_ngrams()) == ((), (2,))
    third = row(prompt, [4]).fork()
    assert third.banned_by_words() == (5,)
    first.append(7)
    assert first.stop == (6, 7)
    assert third.stop is None


def test_the_last_tokens_reach_into_the_prompt():
    history = row(Prompt([1, 2, 3]), [4, 5])
    assert [history.last(n) for n in (0, 1, 2, 3, 9)] == [(), (5,), (4, 5), (3, 4, 5), (1, 2, 3, 4, 5)]
    assert len(history) == 5
    assert row(Prompt([1, 2]), []).last(1) == (2,)
