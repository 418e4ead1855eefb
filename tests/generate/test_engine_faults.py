"""What goes wrong in one request stays there; an engine that is interrupted, closed or forgotten leaves nothing."""

from __future__ import annotations

import contextlib
import gc
import math
import queue
import signal
import subprocess
import sys
import threading
import weakref
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from answering import GREEDY, PROMPTS, answers, fixed_scores, ids_of
from waiting import PATIENCE_SECONDS, interrupts_stay_inside, passes_of, wait_until

from danlu import Engine, GenerationParams
from danlu.errors import AllBanned, DanluError, Interrupted, MemoryShortage
from danlu.generate.batch.worker import next_of, result_of

# --- faults


@pytest.mark.parametrize("fails", [False, True])
def test_who_hears_of_an_end_finds_the_memory_free(engine, monkeypatch, fails):
    """Of four requests that end in one step, the first as well as the last."""
    own, found = engine._worker.submit, []

    def submit(request):
        told = request.on_end
        request.on_end = lambda error: (found.append(engine.load.kv_bytes), told(error))
        own(request)

    monkeypatch.setattr(engine._worker, "submit", submit)
    if fails:
        monkeypatch.setattr(engine.core, "decoder", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        engine.generate([[5, 6, 7]] * 4, GenerationParams(max_new_tokens=3, eos_token_id=[]))
    wait_until(lambda: len(found) == 4)
    assert found == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError("no memory for the scores of one step"),
    ],
)
def test_no_memory_in_a_step_is_said_so_and_the_engine_goes_on(engine, monkeypatch, fault):
    """The error holds on to nothing of what was computed when it came."""
    expected, own = ids_of(engine), engine.core.decoder

    def decoder(*args):
        computed = torch.zeros(1)
        kept.append(weakref.ref(computed))
        raise fault

    kept: list[weakref.ref] = []
    monkeypatch.setattr(engine.core, "decoder", decoder)
    with pytest.raises(MemoryShortage, match="out of memory") as caught:
        engine.generate(PROMPTS, GREEDY)
    assert caught.value.__cause__ is fault
    assert kept[0]() is None
    monkeypatch.setattr(engine.core, "decoder", own)
    assert ids_of(engine) == expected


def test_a_fault_while_streaming_reaches_the_caller(engine, monkeypatch):
    own, calls = engine.core.decoder, []

    def decoder(*args):
        calls.append(1)
        if len(calls) == 4:
            raise ArithmeticError("no fourth token")
        return own(*args)

    monkeypatch.setattr(engine.core, "decoder", decoder)
    expected = None
    for ask in (lambda: list(engine.stream(PROMPTS[0], GREEDY)), lambda: engine.generate(PROMPTS, GREEDY)):
        calls.clear()
        with pytest.raises(ArithmeticError, match="no fourth token"):
            ask()
        seen = ids_of(engine)  # and the engine goes on
        assert seen == (expected or seen)
        expected = seen
        assert engine.load.kv_bytes == 0


def test_a_fault_of_one_request_is_its_own(engine, monkeypatch):
    expected = answers(engine, PROMPTS[:2])
    spoilt, sound = (engine._job(prompt, GREEDY) for prompt in PROMPTS[:2])
    own = spoilt.request.on_step

    def on_step(step):
        own(step)
        if spoilt.request.strategy.made == 3:
            raise ValueError("cannot be counted")

    spoilt.request.on_step = on_step
    for job in (spoilt, sound):
        engine._worker.submit(job.request)
    with pytest.raises(ValueError, match="cannot be counted"):
        engine._generation(spoilt)
    assert engine._generation(sound).sequences == (expected[1],)


def test_scores_that_are_no_numbers_end_their_request_and_reach_no_other(engine):
    """Keys that are not numbers lie in a place which the next request takes over."""
    expected = ids_of(engine, [PROMPTS[1]])
    embedding = engine._model.get_input_embeddings().weight.data
    kept = embedding[7].clone()
    embedding[7] = math.nan
    with pytest.raises(DanluError, match="not numbers"):
        ids_of(engine, [[5] * 40 + [7]])
    beside = engine._job([9, 9], GenerationParams(max_new_tokens=400))
    engine._worker.submit(beside.request)  # keeps the shelf, with its memory, in use
    with pytest.raises(DanluError, match="not numbers"):
        ids_of(engine, [[5] * 40 + [7]])
    embedding[7] = kept
    assert ids_of(engine, [PROMPTS[1]]) == expected
    engine._worker.cancel(beside.request)


def test_a_row_without_a_token_left_is_said(engine, monkeypatch):
    fixed_scores(engine, monkeypatch, {20: 1.0, 21: 0.5})
    for knobs in ({}, {"do_sample": True, "num_return_sequences": 2, "seed": 0}, {"num_beams": 2}):
        with pytest.raises(AllBanned, match="banned"):
            ids_of(engine, [[9]], no_repeat_ngram_size=1, **knobs)
    assert ids_of(engine, [[9]], no_repeat_ngram_size=1, max_new_tokens=2) == [(20, 21)]


def test_work_ends_when_nobody_listens(engine, monkeypatch):
    own, calls = engine.core.decoder, []

    def decoder(*args):
        calls.append(1)
        return own(*args)

    monkeypatch.setattr(engine.core, "decoder", decoder)
    pieces = engine.stream(PROMPTS[0], GenerationParams(max_new_tokens=400))
    next(pieces)
    pieces.close()
    engine.logits([5])  # what was asked for before this is done
    assert len(calls) < 400
    assert engine.core.is_idle
    assert engine.load.kv_bytes == 0


def test_an_interrupted_caller_takes_its_work_along(engine, monkeypatch):
    """It waits for the first answer, and the engine stands before its second pass."""
    with passes_of(engine, free=1) as passes:

        def interrupted(_job):
            wait_until(lambda: passes.are_used_up)
            raise KeyboardInterrupt

        monkeypatch.setattr(engine, "_generation", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.generate([PROMPTS[0]] * 8, GenerationParams(max_new_tokens=400, eos_token_id=[]))
        passes.go_on()
        engine.logits([5])  # what was asked for before this is done
    assert passes.made <= 3  # the first, the one that was held up, and the last line's
    assert engine.core.is_idle
    assert engine.load.kv_bytes == 0


WAITING = """
import signal, sys
from answering import strong_engine
from waiting import passes_of
from danlu import GenerationParams

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
engine = strong_engine(sys.argv[1])
with passes_of(engine, free=1) as passes:
    count = passes.count
    passes.count = lambda: (print("running", flush=True), count())
    try:
        engine.generate(["one"] * 8, GenerationParams(max_new_tokens=400, eos_token_id=[]))
    except KeyboardInterrupt:
        passes.go_on()
        engine.logits([5])
        print("idle", engine.core.is_idle, engine.load.kv_bytes)
"""


def test_ctrl_c_reaches_a_caller_who_waits(tiny_model):
    """A real signal, in a process of its own."""
    command, pipes = [sys.executable, "-c", WAITING, str(tiny_model)], {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=Path(__file__).parent.parent, **pipes) as process:
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert said.splitlines()[-1] == "idle True 0"
    assert process.returncode == 0


@pytest.mark.parametrize("waited", ["queue", "future"])
def test_a_signal_that_came_to_another_thread_is_heard_by_the_one_that_waits(monkeypatch, waited):
    """It interrupts nothing that the main thread waits for; nor does one that comes just before the wait."""
    monkeypatch.setattr("danlu.generate.batch.worker._LISTEN_SECONDS", 0.01)
    thread = threading.Thread(target=signal.raise_signal, args=(signal.SIGINT,))

    def ask():
        thread.start()
        return next_of(queue.SimpleQueue()) if waited == "queue" else result_of(Future())

    with interrupts_stay_inside():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            ask()
    thread.join()


# --- the engine's end


def is_collected(reference):
    gc.collect()
    return reference() is None


@pytest.mark.parametrize("ask", ["generate", "stream", "unfinished stream", "logits", "fault"])
def test_a_forgotten_engine_ends_its_thread_and_frees_its_model(tiny_model, ask):
    engine = Engine(str(tiny_model), dtype="float32")
    if ask == "generate":
        engine.generate(PROMPTS, GREEDY)
    elif ask == "stream":
        list(engine.stream(PROMPTS[0], GREEDY))
    elif ask == "unfinished stream":
        next(engine.stream(PROMPTS[0], GREEDY))
    elif ask == "logits":
        engine.logits([5])
    else:
        engine.core.decoder = lambda *_args: 1 / 0
        with pytest.raises(ZeroDivisionError):
            engine.generate(PROMPTS, GREEDY)
    thread, core = engine._worker._threads[0], weakref.ref(engine.core)
    assert thread.is_alive()
    del engine
    wait_until(lambda: gc.collect() is not None and not thread.is_alive())
    wait_until(lambda: is_collected(core))


def test_a_closed_engine_says_so(engine):
    pieces = engine.stream(PROMPTS[0], GenerationParams(max_new_tokens=5000))
    next(pieces)
    engine.close()
    for ask in (lambda: list(pieces), lambda: ids_of(engine), lambda: engine.logits([5])):
        with pytest.raises(Interrupted, match="closed"):
            ask()
    engine.close()
    assert not engine._worker._threads[0].is_alive()
