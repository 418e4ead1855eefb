"""Layers that carry a state: each text has its own, whoever reads beside it and however it is cut."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from danlu.errors import ModelError
from danlu.generate.batch.attend import Chunk, Plan, Rows
from danlu.generate.batch.kv import KVShape, KVStore
from danlu.model.company.company import Side, StateShape, Wiring
from danlu.model.company.documents import documents_of
from danlu.model.company.sight import Sight
from danlu.model.company.states import ANEW, Apart, ApartByAttributes, Carried, Passing

# -- what layers are given in place of a cache


def inputs(*tokens):
    """(1 text, 1 channel, tokens)"""
    return torch.tensor(tokens, dtype=torch.float32).view(1, 1, -1)


def test_a_text_shorter_than_the_kernel_is_filled_up_in_front():
    carried = Carried({})
    assert carried.update_conv_state(inputs(1, 2), 0, conv_kernel_size=4).flatten().tolist() == [0, 0, 1, 2]
    assert carried.now[0, "conv", 0].flatten().tolist() == [0, 0, 1, 2]


def test_of_a_text_longer_than_the_kernel_the_last_inputs_are_kept():
    carried = Carried({})
    assert carried.update_conv_state(inputs(1, 2, 3, 4, 5), 0, conv_kernel_size=3).flatten().tolist() == [1, 2, 3, 4, 5]
    assert carried.now[0, "conv", 0].flatten().tolist() == [3, 4, 5]


def test_what_goes_on_is_seen_behind_what_came_before():
    carried = Carried({(0, "conv", 0): inputs(7, 8, 9)})
    assert carried.update_conv_state(inputs(1), 0).flatten().tolist() == [7, 8, 9, 1]
    assert carried.update_conv_state(inputs(2, 3), 0).flatten().tolist() == [8, 9, 1, 2, 3]
    assert carried.now[0, "conv", 0].flatten().tolist() == [1, 2, 3]


def test_a_kernel_size_that_is_told_later_does_not_change_the_state():
    carried = Carried({(0, "conv", 0): inputs(7, 8, 9)})
    carried.update_conv_state(inputs(1), 0, conv_kernel_size=2)
    assert carried.now[0, "conv", 0].shape[-1] == 3


def test_states_of_one_layer_are_told_apart_by_number_and_kind():
    carried = Carried({})
    carried.update_conv_state(inputs(1, 2), 0, state_idx=0)
    carried.update_conv_state(inputs(3, 4), 0, state_idx=1)
    carried.update_recurrent_state(inputs(5), 0)
    assert carried.get_conv_state(0, 0).flatten().tolist() == [1, 2]
    assert carried.get_conv_state(0, 1).flatten().tolist() == [3, 4]
    assert carried.get_recurrent_state(0).flatten().tolist() == [5]
    assert carried.get_recurrent_state(0, 1) is None
    assert carried.get_conv_state(1) is None


def test_there_is_a_state_before_where_one_was_left():
    carried = Carried({(2, "conv", 1): inputs(1)})
    asked = [(2, None), (2, 1), (2, 0), (1, None)]
    assert [carried.has_previous_state(layer, at) for layer, at in asked] == [True, True, False, False]


def test_every_place_that_is_asked_for_or_written_is_heard():
    heard = []
    carried = Carried({}, heard.append)
    carried.get_conv_state(0)
    carried.get_linear_cache(1)
    carried.set_linear_cache(2, inputs(1))
    carried.update_recurrent_state(inputs(1), 3, state_idx=1)
    assert heard == [(0, "conv", 0), (1, "linear", 0), (2, "linear", 0), (3, "recurrent", 1)]


def test_a_cache_of_a_pass_gives_back_what_it_is_given_and_is_always_empty():
    cache = Passing()
    key, value = inputs(1), inputs(2)
    assert cache.update(key, value, 0)[0] is key
    assert cache.update(key, value, 0)[1] is value
    assert (cache.get_seq_length(), cache.get_mask_sizes(7, 0), cache.has_previous_state(0)) == (0, (7, 0), False)


# -- a layer with a state, and who calls it


class Summing(nn.Module):
    """Each token's answer: its number after ten times the answer before it. 3, 4, 5 become 3, 34, 345: a text that
    forgets, is shifted or hears another's tokens shows it in its digits.
    """

    answer = staticmethod(lambda out: out)

    def forward(self, hidden_states, cache_params=None, attention_mask=None):
        before = None if cache_params is None else cache_params.get_recurrent_state(0)
        total = torch.zeros_like(hidden_states[:, 0]) if before is None else before
        outs = []
        for at in range(hidden_states.shape[1]):
            total = 10 * total + hidden_states[:, at]
            outs.append(total)
        if cache_params is not None:
            cache_params.update_recurrent_state(total, 0)
        return self.answer(torch.stack(outs, 1))


class InPlace(Summing):
    """The same, in the state's own memory when there is one."""

    def forward(self, hidden_states, cache_params=None, attention_mask=None):
        state = None if cache_params is None else cache_params.get_recurrent_state(0)
        out = super().forward(hidden_states, cache_params, attention_mask)
        if state is not None:
            state.copy_(cache_params.get_recurrent_state(0))
            cache_params.update_recurrent_state(state, 0)
        return out


class Attributed(nn.Module):
    """The same with its state as an attribute; it begins anew with every call of more than one token."""

    def __init__(self):
        super().__init__()
        self.total = None

    def forward(self, hidden_states, use_cache=True):
        begins = hidden_states.shape[1] > 1 or self.total is None
        total = torch.zeros_like(hidden_states[:, 0]) if begins else self.total
        outs = []
        for at in range(hidden_states.shape[1]):
            total = 10 * total + hidden_states[:, at]
            outs.append(total)
        self.total = total if use_cache else None
        return torch.stack(outs, 1)


SHAPE = StateShape((1,), torch.float32)
ONLY = KVShape((), torch.float32, torch.device("cpu"), (SHAPE,))


class Told:
    """A module in company, called with rows of numbers."""

    def __init__(self, kind=Summing):
        self.module = kind()
        key = (0, "attribute", 0) if kind is Attributed else (0, "recurrent", 0)
        self.wiring = Wiring("", states={key: SHAPE})
        if kind is Attributed:
            self.module.forward = ApartByAttributes(self.module, self.wiring, ("total",), 0)
        else:
            self.module.forward = Apart(self.module, self.wiring)

    def __call__(self, company, numbers, **named):
        row = numbers if isinstance(numbers, torch.Tensor) else torch.tensor(numbers, dtype=torch.float32)
        with self.wiring.reading(company, torch.arange(len(row))):
            named = named or ({} if isinstance(self.module, Attributed) else {"cache_params": Passing()})
            return self.module(row.view(1, -1, 1), **named)


def side(*lengths):
    return Side(documents_of(lengths, "cpu"))


@pytest.fixture(params=[Summing, InPlace, Attributed])
def told(request, monkeypatch):
    monkeypatch.setattr("danlu.model.company.states.ANEW", {*ANEW, "Attributed"})
    return Told(request.param)


def test_documents_laid_end_to_end_are_summed_each_alone(told):
    seen = told(side(3, 1, 2), [1, 2, 3, 4, 5, 6])
    assert seen.flatten().tolist() == [1, 12, 123, 4, 5, 56]


def test_padding_never_reaches_a_document(told):
    """The shorter lines are filled up with a copy of token 0, here no number at all in all that follows."""
    seen = told(side(1, 3), [float("nan"), 1, 2, 3])
    assert seen.flatten().tolist()[1:] == [1, 12, 123]


def test_gradients_stay_inside_their_document(told):
    row = torch.tensor([1.0, 2, 3, 4], requires_grad=True)
    told(side(2, 2), row).flatten()[3].backward()
    assert row.grad.tolist() == [0, 0, 10, 1]  # 34 = 10 * 3 + 4


def test_outside_of_a_pass_the_module_is_its_own(told):
    told(side(1, 1), [5, 6])
    row = torch.tensor([1.0, 2, 3]).view(1, 3, 1)
    assert told.module(row).flatten().tolist() == [1, 12, 123]


# -- in slots


def store_of(rows=1, count=1):
    store = KVStore(ONLY, 2**20)
    slots = [store.open(rows, 20) for _ in range(count)]
    for slot in slots:
        slot.shelf.states[0][slot.index] = 9  # of whoever was here before
    return store, slots


def portion(slot, count, rows=(0,), start=0):
    part = Chunk(slot, start, count, slot.length, rows)
    slot.append_shared(count, slot.length)
    return part


def test_a_text_goes_on_where_its_last_portion_ended(told):
    _, (slot,) = store_of()
    seen = []
    for numbers in ([1], [2, 3], [4, 5, 6], [7]):
        seen += told(Plan([], [portion(slot, len(numbers))]), numbers).flatten().tolist()
    assert seen == [1, 12, 123, 1234, 12345, 123456, 1234567]
    assert slot.shelf.states[0].tolist() == [[[1234567]]]


def test_two_texts_in_one_step_keep_their_states_apart(told):
    _, slots = store_of(count=2)
    first = Plan([], [portion(slots[0], 2), portion(slots[1], 1, start=2)])
    assert told(first, [1, 2, 7]).flatten().tolist() == [1, 12, 7]
    second = Plan([], [portion(slots[1], 2), portion(slots[0], 1, start=2)])
    assert told(second, [8, 9, 3]).flatten().tolist() == [78, 789, 123]


def test_a_prompt_of_several_rows_leaves_its_state_to_all_of_them(told):
    _, (slot,) = store_of(rows=3)
    for numbers in ([1], [2, 3]):
        told(Plan([], [portion(slot, len(numbers), rows=(0, 1, 2))]), numbers)
        assert slot.shelf.states[0][0].unique().numel() == 1
    assert slot.shelf.states[0][0].flatten().tolist() == [123] * 3


def test_a_branch_leaves_its_state_to_its_own_rows(told):
    _, (slot,) = store_of(rows=3)
    told(Plan([], [portion(slot, 1, rows=(0, 1, 2))]), [1])
    part = Chunk(slot, 0, 1, slot.length, (0, 2))
    slot.append_branch((0, 2), 1, 1)
    told(Plan([], [part]), [5])
    assert slot.shelf.states[0][0].flatten().tolist() == [15, 1, 15]


def test_rows_fork_with_their_states(told):
    _, (slot,) = store_of(rows=3)
    told(Plan([], [portion(slot, 1, rows=(0, 1, 2))]), [1])
    slot.shelf.make_ready(slot)
    slot.shelf.append_step([slot], [1])
    assert told(Plan([Rows(slot.shelf, 0)], []), [2, 3, 4]).flatten().tolist() == [12, 13, 14]
    slot.fork([2, 0, 2])
    slot.shelf.append_step([slot], [2])
    assert told(Plan([Rows(slot.shelf, 0)], []), [5, 6, 7]).flatten().tolist() == [145, 126, 147]


def test_rows_and_portions_share_a_step(told):
    _, (first, second) = store_of(count=2)
    told(Plan([], [portion(first, 1)]), [1])
    first.shelf.make_ready(first)
    first.shelf.append_step([first], [1])
    plan = Plan([Rows(first.shelf, 0)], [portion(second, 2, start=1)])
    assert told(plan, [2, 7, 8]).flatten().tolist() == [12, 7, 78]
    assert first.shelf.states[0].flatten().tolist() == [12, 78]


# -- what else a module is given, and answers


@pytest.mark.parametrize("kind", [tuple, list])
def test_of_several_answers_those_along_the_tokens_come_back(kind):
    class Several(Summing):
        answer = staticmethod(lambda out: kind([out, None, out[:, -1], out * 2]))

    whole, nothing, last, twice = Told(Several)(side(2, 1), [1, 2, 5])
    assert whole.flatten().tolist() == [1, 12, 5]
    assert twice.flatten().tolist() == [2, 24, 10]
    assert nothing is None
    assert last is None  # one a text: no row of tokens


def test_what_goes_along_the_row_is_cut_and_a_mask_is_left_out():
    seen = []

    class Watching(Summing):
        def forward(self, hidden_states, angles, attention_mask=None, scale=None, cache_params=None):
            seen.append((angles[0].flatten().tolist(), attention_mask, scale, cache_params))
            return super().forward(hidden_states, cache_params)

    _, slots = store_of(count=2)
    told = Told(Watching)
    plan = Plan([], [portion(slots[0], 2), portion(slots[1], 1, start=2)])
    angles = (torch.tensor([10.0, 20, 30]).view(1, 3, 1),)
    told(plan, [1, 2, 5], angles=angles, attention_mask=Sight(4), scale=7, cache_params=Passing())
    assert [one[:3] for one in seen] == [([10, 20], None, 7), ([30], None, 7)]
    assert all(isinstance(one[3], Carried) for one in seen)


def test_a_state_of_another_shape_is_refused_and_not_spread():
    class Growing(Summing):
        def forward(self, hidden_states, cache_params=None, attention_mask=None):
            cache_params.update_recurrent_state(hidden_states[:, :, 0], 0)
            return hidden_states

    _, (slot,) = store_of()
    with pytest.raises(ModelError, match=r"Growing carries \(1, 2\) for \(1, 1\)"):
        Told(Growing)(Plan([], [portion(slot, 2)]), [1, 2])


def test_a_module_without_a_row_of_tokens_is_refused():
    told = Told()
    with told.wiring.reading(side(2), torch.arange(2)), pytest.raises(ModelError, match="without a row of tokens"):
        told.module(torch.zeros(2, 1))


def test_a_fault_inside_leaves_no_part_and_no_company_behind():
    told = Told()
    with pytest.raises(TypeError):
        told(side(2), [1, 2], nonsense=3)
    assert (told.wiring.company, told.wiring.part, told.wiring.positions) == (None, None, None)
    assert told(side(2), [1, 2]).flatten().tolist() == [1, 12]


def test_a_module_with_attributes_keeps_nothing_after_a_pass():
    told = Told(Attributed)
    _, (slot,) = store_of()
    told(Plan([], [portion(slot, 2)]), [1, 2])
    assert told.module.total is None
    assert slot.shelf.states[0].item() == 12


def test_a_copy_has_a_company_of_its_own():
    told = Told()
    other = copy.deepcopy(told)
    assert other.module.forward.wiring is other.wiring is not told.wiring
    with told.wiring.reading(side(1), torch.arange(1)):
        assert other.wiring.company is None
        assert other(side(2), [1, 2]).flatten().tolist() == [1, 12]
