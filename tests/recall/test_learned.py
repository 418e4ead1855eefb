"""Two towers: their losses, what serves them without torch, training on the loop, and who is new."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from danlu.device import read_device
from danlu.errors import DataError
from danlu.journal import Journal
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.learned import towers
from danlu.recall.learned.attributes import Attributes
from danlu.recall.learned.options import TowerOptions
from danlu.recall.learned.serving import Learned, unit
from danlu.recall.learned.towers import Batch, Towers, full_softmax, sampled_softmax
from danlu.recall.learned.train_options import TowerTrainOptions
from danlu.recall.learned.training import Learnt, _bags, histories, learn, served

SMALL = TowerOptions(dim=16, layers=2, heads=2, history=6, dropout=0.0, temperature=0.1)


def chains(count=120, items=20, seed=0):
    """Users who go from each item to the next one, on a circle."""
    rng = np.random.default_rng(seed)
    begins, sizes = rng.integers(0, items, count), rng.integers(2, 9, count)
    return Matrix.listed([(begin + np.arange(size)) % items for begin, size in zip(begins, sizes, strict=True)], items)


def how(**changes):
    given = {
        "num_train_epochs": 12,
        "batch_size": 16,
        "learning_rate": 1e-2,
        "save_steps": 40,
        "micro_batch_tokens": 64,
    }
    return TowerTrainOptions(**{**given, **changes})


def learnt(folder, what, options=SMALL, **changes):
    folder.mkdir(exist_ok=True)
    return learn(Learnt(what), options, how(**changes), Journal(folder), read_device(), held_out=10)


# -- losses -----------------------------------------------------------------------------------------------


@pytest.fixture
def in_float32(monkeypatch):
    monkeypatch.setattr(towers, "_has_bfloat16", lambda device: False)


def test_the_full_softmax_is_that_of_torch(in_float32, monkeypatch):
    monkeypatch.setattr(towers, "_AT_ONCE", 3)
    torch.manual_seed(0)
    asked, vectors = torch.randn(8, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)
    wanted = torch.randint(11, (8,))
    gradients = []
    for loss in (full_softmax(asked, vectors, wanted), F.cross_entropy(asked @ vectors.T, wanted, reduction="sum")):
        gradients.append((loss.detach(), *torch.autograd.grad(2 * loss, (asked, vectors))))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_samples_stand_for_all_items_in_the_mean():
    """With log-Q subtracted, the sum over samples is in the mean the sum over all other items; otherwise it is not."""
    torch.manual_seed(0)
    chances = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
    asked, vectors, wanted = torch.randn(3, 4), torch.randn(6, 4), torch.tensor([0, 3, 5])
    exact = F.cross_entropy(asked @ vectors.T, wanted, reduction="sum")

    def mean(sign):
        found = []
        for _ in range(400):
            drawn = torch.multinomial(chances, 64, replacement=True)
            of = chances[drawn] if sign > 0 else 1 / (chances[drawn] * 64**2)
            found.append(sampled_softmax(asked, vectors[wanted], vectors[drawn], wanted, drawn, of))
        return torch.stack(found).mean()

    assert mean(1) == pytest.approx(float(exact), rel=0.02)
    assert mean(-1) != pytest.approx(float(exact), rel=0.1)


def test_beyond_a_size_samples_are_taken(tmp_path):
    what = chains()
    few = SMALL.model_copy(update={"full_softmax_items": 10, "negatives": 8})
    found = learnt(tmp_path, what, few)
    top = found.recommend(Matrix.listed([[3, 4, 5]], 20), 1)
    assert top.columns[0, 0] == 6


# -- histories --------------------------------------------------------------------------------------------


def test_each_event_is_learnt_once_but_those_that_are_looked_at():
    what = chains(40, 30, seed=1)
    long = Matrix.listed([list(range(17)), [3], []], 30)
    for users, held_out in ((what, 10), (long, 0), (long, 5)):
        learnt_from, looked_at = histories(users, 6, held_out, 0)
        targets = sum(one.targets for one in learnt_from) + len(looked_at)
        assert targets == users.sizes.sum()
        assert all(len(one.items) <= 7 for one in [*learnt_from, *looked_at])
    assert [one.items.tolist() for one in histories(long, 6, 0, 0)[0]] == [
        [0, 1, 2, 3, 4, 5, 6], [6, 7, 8, 9, 10, 11, 12], [12, 13, 14, 15, 16], [3],
    ]  # fmt: skip


def test_a_place_sees_nothing_of_what_comes_after_it():
    torch.manual_seed(0)
    model = Towers(9, SMALL).eval()
    one, other = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 7, 9]])  # 9: nothing there
    states = model.all_states()
    a, b = (model.encoded(torch.zeros(1, dtype=torch.long), items, states)[0] for items in (one, other))
    assert (len(a), len(b)) == (5, 4)
    assert torch.allclose(a[:3], b[:3], atol=1e-6)
    assert not torch.allclose(a[3], b[3], atol=1e-3)


# -- serving ----------------------------------------------------------------------------------------------


def test_what_serves_is_what_was_trained():
    torch.manual_seed(0)
    model = Towers(30, SMALL).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 0.0, 0.5)
    found = served(model)
    lists = [[], [3], [4, 5, 6], list(range(9)), [7, 1, 2]]
    vectors = found.user_vectors(Matrix.listed(lists, 30))
    for row, items in enumerate(lists):
        latest = torch.tensor([items[-6:]], dtype=torch.long)
        with torch.no_grad():
            wanted = model.encoded(torch.tensor([0]), latest, model.all_states())[0][-1]
        assert np.allclose(vectors[row], wanted.numpy(), atol=2e-5)
    assert np.allclose(np.linalg.norm(found.item_vectors, axis=1), 1, atol=1e-5)


def test_recommendations_are_the_nearest_that_are_allowed():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(40, 8)).astype(np.float32)
    weights = served(Towers(40, SMALL.model_copy(update={"dim": 8}))).weights
    found = Learned(weights, 2, states)
    users = Matrix.listed([[1, 2], [], [39]], 40)
    allowed = (np.arange(40) % 2).astype(np.uint8)
    top = found.recommend(users, 5, allowed=allowed)
    scores = found.user_vectors(users) @ unit(states).T
    for row, own in enumerate(([1, 2], [], [39])):
        given = [item for item in np.argsort(-scores[row]).tolist() if allowed[item] and item not in own]
        assert top.columns[row].tolist() == given[:5]
    assert found.recommend(users, 30, allowed=allowed).counts.tolist() == [19, 20, 19]
    assert found.recommend(users, 3, allowed=np.zeros(40, np.uint8)).counts.tolist() == [0, 0, 0]
    more = found.recommend(Matrix.listed([[1, 55]], 60), 2)  # an item that came later
    assert more.columns.tolist() == found.recommend(Matrix.listed([[1]], 40), 2).columns.tolist()


# -- training ---------------------------------------------------------------------------------------------


def test_it_learns_what_comes_next_and_the_same_again(tmp_path):
    what = chains()
    found = learnt(tmp_path / "a", what)
    top = found.recommend(Matrix.listed([[3, 4, 5], [18, 19], [0]], 20), 1)
    assert top.columns[:, 0].tolist() == [6, 0, 1]
    rows = Journal(tmp_path / "a").metrics()
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert math.isfinite(rows[-1]["eval_loss"])
    assert rows[0]["events"] > 16
    again = learnt(tmp_path / "b", what)
    assert np.array_equal(found.states, again.states)


def test_a_run_that_was_cut_goes_on_as_it_would_have(tmp_path):
    what = chains()
    whole = learnt(tmp_path / "a", what)
    (tmp_path / "b").mkdir()
    journal = Journal(tmp_path / "b")

    def cut(row):
        if row["step"] == 60:
            raise KeyboardInterrupt

    given = (Learnt(what), SMALL, how(), journal, read_device())
    with pytest.raises(KeyboardInterrupt):
        learn(*given, held_out=10, on_step=cut)
    resumed = learn(*given, held_out=10, resume=True)
    assert np.array_equal(whole.states, resumed.states)


def test_nothing_to_learn_from(tmp_path):
    with pytest.raises(DataError, match="no user has an event"):
        learnt(tmp_path, Matrix.listed([[], []], 5))


# -- attributes -------------------------------------------------------------------------------------------

PEOPLE = pa.table(
    {
        "sex": ["F", "M", None, "F"],
        "interests": [["tea", "yoga"], [], ["tea"], None],
        "age": [20.0, 30.0, float("nan"), 70.0],
        "member": [True, False, True, None],
    }
)


def test_attributes_have_places_and_what_is_not_known_none():
    attributes = Attributes.of(PEOPLE)
    known = attributes.known(PEOPLE)
    assert np.diff(known.starts).tolist() == [5, 3, 2, 2]
    assert known.codes.max() < attributes.count == known.count
    assert Attributes.loaded(attributes.dumped()).known(PEOPLE).codes.tolist() == known.codes.tolist()
    stranger = attributes.known(pa.Table.from_pylist([{"sex": "X", "age": 25.0}]))
    assert np.diff(stranger.starts).tolist() == [1]
    table = np.arange(known.count, dtype=np.float32)[:, None]
    assert known.sums(table)[:, 0].tolist() == [
        float(known.codes[a:b].sum()) for a, b in zip(known.starts[:-1], known.starts[1:], strict=True)
    ]


def test_a_new_user_and_a_new_item_work_by_their_attributes(tmp_path):
    """Users of group a take the even items; item 19 nobody has taken, and it is even."""
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 2, 200)
    users = Matrix.listed([rng.permutation(9)[:4] * 2 + group for group in groups], 20)
    people = pa.table({"group": [["a", "b"][group] for group in groups]})
    things = pa.table({"parity": [["even", "odd"][item % 2] for item in range(18)] + ["odd", "even"]})
    of_users, of_items = Attributes.of(people), Attributes.of(things)
    what = Learnt(users, of_items.known(things), of_users.known(people))
    options = SMALL.model_copy(update={"id_dropout": 0.3})
    found = learn(what, options, how(num_train_epochs=8), Journal(tmp_path), read_device(), held_out=10)
    nobody = Matrix.listed([[], []], 20)
    known = of_users.known(pa.table({"group": ["a", "b"]})).sums(found.weights["of_users.attributes.weight"])
    top = found.recommend(nobody, 10, known=known)
    assert (top.columns[0, :9] % 2).sum() <= 1
    assert (top.columns[1, :9] % 2).sum() >= 8
    scores = found.user_vectors(nobody, known) @ found.item_vectors[[18, 19]].T
    assert scores[1, 0] > scores[1, 1]  # item 18 is odd by what is known of it
    assert scores[0, 1] > scores[0, 0]


def test_texts_are_part_of_an_item(tmp_path):
    rng = np.random.default_rng(0)
    known = Attributes(()).known(pa.table({"x": [0] * 20}))
    texts = rng.normal(size=(20, 5)).astype(np.float32)
    bags = _bags(replace(known, texts=texts))
    model = Towers(20, SMALL, bags).eval()
    with_text, without = model.all_states(), model.ids.weight
    assert torch.allclose(with_text - without, torch.from_numpy(texts) @ model.known.text.weight.T, atol=1e-5)
    loss = model.loss(Batch(torch.tensor([0]), torch.tensor([[1, 2]]), torch.tensor([[1, 2, 3]])))
    loss.backward()
    assert model.known.text.weight.grad.abs().sum() > 0
