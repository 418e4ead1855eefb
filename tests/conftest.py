"""Fixtures that many tests share, and the order of tests."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from shuffling import (  # noqa: F401 - pytest calls them
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_report_header,
)

from danlu import cli
from danlu.commands import shared
from tiny import make_tiny_model

# What rich asks the environment: how wide lines are, and whether they have colours, wherever the tests run.
_TERMINAL = {
    "COLUMNS": "300",
    "TERM": "xterm",
    "FORCE_COLOR": "",
    "NO_COLOR": "",
    "TTY_COMPATIBLE": "0",
    "TTY_INTERACTIVE": "0",
}

# Tiny models: a second thread costs more than it saves.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


def pytest_collection_finish() -> None:
    """Ten thousand tests and what they import stay: whoever collects garbage need not look through them each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _on_the_cpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """On every machine, unless tests marked cuda are asked for: a CPU is what the others compare with."""
    if "cuda" in request.config.option.markexpr:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # for processes that tests start
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _verdicts_stay_inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What engines find out about the tests' models is not kept in the user's cache; messages are English."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DANLU_LANG", "en")  # whatever the locale; processes that tests start inherit it
        patch.setattr("danlu.generate.batch.verdict.DIRECTORY", str(tmp_path_factory.mktemp("verdicts")))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny random Llama. Shared by the whole session: copy it before changing it."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: data for every kind of training, and a judge."""
    from trainings import write_data

    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: (exit code, standard output, standard error)."""
    for name, value in _TERMINAL.items():
        monkeypatch.setenv(name, value)
    for console in (shared.OUT, shared.ERRORS):  # rich asks when one is made, which whoever imported it first had done
        monkeypatch.setattr(console, "_width", None)
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path_factory.mktemp("cache")))

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.call([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run
