"""What a run says on its way, without a terminal: a line every tenth of it."""

from __future__ import annotations

import io

from rich.console import Console

from danlu.terminal import RunView


def lines(rows):
    console = Console(file=io.StringIO(), force_terminal=False)
    view = RunView(console)
    for row in rows:
        view.step({"tokens": 300, "seconds": 2.0, **row})
    return console.file.getvalue().splitlines()


def training(steps, **columns):
    return [{"step": at + 1, "steps": steps, **columns} for at in range(steps)]


def test_figures_of_one_training_do_not_run_into_the_next():
    shown = lines([*training(3, loss=1.0), *training(3, loss=5.0)])
    assert shown[:3] == [f"step {at}/3  loss 1.000  150 tokens/s" for at in (1, 2, 3)]
    assert shown[3:] == [f"step {at}/3  loss 5.000  150 tokens/s" for at in (1, 2, 3)]


def test_a_training_that_is_gone_on_with_is_one_training():
    rows = [{"step": 7, "steps": 8, "loss": 1.0}, {"step": 8, "steps": 8, "loss": 2.0}]
    assert lines(rows)[-1] == "step 8/8  loss 1.500  150 tokens/s"


def test_a_bar_is_as_long_as_the_run_turns_out_to_be():
    view = RunView(Console(file=io.StringIO(), force_terminal=True))
    for row in [*training(3, loss=1.0)[:2], {"step": 3, "steps": 5, "loss": 1.0}]:  # steps were taken back
        view.step({"tokens": 300, "seconds": 2.0, **row})
    (task,) = view._progress.tasks
    view.close()
    assert (task.completed, task.total) == (3, 5)


def test_each_kind_of_training_says_what_tells_its_progress():
    assert lines(training(1, loss=0.1, score=-0.25, kl=1.5)) == ["step 1/1  score -0.250  kl 1.500  150 tokens/s"]
    assert lines(training(1, loss=0.1, score=-0.25, accuracy=0.75)) == [
        "step 1/1  loss 0.100  accuracy 0.750  150 tokens/s"
    ]
    assert lines(training(1, loss=0.5, **{"rewards/accuracies": 0.5})) == [
        "step 1/1  loss 0.500  accuracy 0.500  150 tokens/s"
    ]
