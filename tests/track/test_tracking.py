"""What trackers hear of a run: each with a fake of its package, of the functions and arguments that it really has."""

from __future__ import annotations

import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
from boards import events_of
from showing import Lines
from trainings import recipe_of, write_data
from waiting import PATIENCE_SECONDS

from danlu.errors import ConfigError, TrainingError
from danlu.journal import Journal
from danlu.run import run
from danlu.track import tracking
from danlu.track.tracking import TrackOptions, check_trackers, tracked


class Heard(list):
    """Calls of a fake package, in their order."""

    def of(self, name):
        return [call[1:] for call in self if call[0] == name]


def fake_wandb(heard):
    class Run:
        def __init__(self, id):
            self.id, self.step, self.summary = id, 0, SimpleNamespace(update=lambda found: heard.append(("sum", found)))

        def log(self, data, step=None, commit=None):
            assert step >= self.step, "its steps only rise"
            self.step = step
            heard.append(("log", data, step))

        def finish(self, exit_code=None):
            heard.append(("finish",))

    def init(entity=None, project=None, dir=None, id=None, name=None, config=None, mode=None, resume=None,
             settings=None):  # fmt: skip
        heard.append(("init", {"project": project, "name": name, "id": id, "resume": resume, "mode": mode}))
        return Run(id)

    return {"init": init}


def fake_swanlab(heard):
    def init(*, log_dir=None, mode=None, project=None, name=None, id=None, resume=None, config=None, **kwargs):
        heard.append(("init", {"project": project, "name": name, "id": id, "resume": resume, "mode": mode}))

    return {
        "init": init,
        "Text": lambda text: text,
        "log": lambda data, step=None: heard.append(("log", dict(data), step)),
        "finish": lambda state="success", error=None: heard.append(("finish",)),
    }


def fake_trackio(heard):
    def init(project, name=None, group=None, space_id=None, config=None, resume="never", embed=True):
        heard.append(("init", {"project": project, "name": name, "id": name, "resume": resume}))

    return {
        "init": init,
        "log": lambda metrics, step=None: heard.append(("log", metrics, step)),
        "finish": lambda: heard.append(("finish",)),
    }


def fake_mlflow(heard):
    def start_run(run_id=None, experiment_id=None, run_name=None, nested=False, tags=None, description=None):
        heard.append(("init", {"name": run_name, "id": run_id}))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "given-by-it"))

    return {
        "start_run": start_run,
        "set_experiment": lambda experiment_name=None: heard.append(("experiment", experiment_name)),
        "set_tracking_uri": lambda uri: heard.append(("uri", uri)),
        "log_params": lambda params, synchronous=None, run_id=None: heard.append(("params", params)),
        "log_metrics": lambda metrics, step=None, synchronous=None: heard.append(("log", metrics, step)),
        "log_text": lambda text, artifact_file, run_id=None: heard.append(("text", text)),
        "end_run": lambda status="FINISHED": heard.append(("finish",)),
    }


FAKES = {"wandb": fake_wandb, "swanlab": fake_swanlab, "trackio": fake_trackio, "mlflow": fake_mlflow}


@pytest.fixture
def installed(monkeypatch):
    """name -> what its package, a fake, is told."""

    def install(name, **more):
        heard = Heard()
        module = ModuleType(name)
        module.__spec__ = SimpleNamespace(name=name)
        vars(module).update({**FAKES[name](heard), **more})
        monkeypatch.setitem(sys.modules, name, module)
        return heard

    return install


def half(directory, options, steps, rewound=None, config=None, said=None):
    """Part of a run: these steps, in the journal and to its trackers."""
    directory.mkdir(exist_ok=True)
    said = [] if said is None else said
    journal = tracked(Journal(directory), options, config or {"train": {"learning_rate": 1e-4}}, "mine", said.append)
    if rewound is None:
        journal.event("plan", "32 examples a step", steps=9)
        journal.result("before", {"loss": 3.0, "answers": ["a"], "sure": True})
        journal.rewind(0)
    else:
        journal.event("resumed", "from step-2", step=rewound)
        journal.rewind(rewound)
    for step in steps:
        held_out = {"eval_loss": 2.0} if step == 4 else {}
        journal.metric(step=step, steps=9, loss=3.0 - step / 10, **held_out)
    journal.close()
    return journal


@pytest.mark.parametrize("name", FAKES)
def test_a_run_is_told_and_one_that_is_resumed_goes_on_in_it_without_a_step_twice(tmp_path, installed, name):
    heard = installed(name)
    options = TrackOptions(report_to=(name,))
    check_trackers(options)
    half(tmp_path / "run", options, range(1, 5))  # killed after step 4, with a checkpoint of step 2
    half(tmp_path / "run", options, range(3, 7), rewound=2)
    rows = [(data["train/loss"], step) for data, step in heard.of("log") if "train/loss" in data]
    assert rows == [(3.0 - step / 10, step) for step in range(1, 7)]
    assert [(data["eval/loss"], step) for data, step in heard.of("log") if "eval/loss" in data] == [(2.0, 4)]
    begun, again = [call[0] for call in heard.of("init")]
    assert begun.get("project") in (None, "danlu")
    assert again["id"] == ("given-by-it" if name == "mlflow" else begun["id"])
    assert [call for call in heard if call[0] == "finish"] == [("finish",)] * 2
    told = str(heard)
    assert "32 examples a step; steps 9" in told
    assert "'before/loss': 3.0" in told
    assert "before/answers" not in told
    assert not any(event["kind"] == "tracker" for event in Journal(tmp_path / "run").events())


def test_parameters_are_told_to_mlflow_once(tmp_path, installed):
    heard = installed("mlflow")
    options = TrackOptions(report_to=("mlflow",), project="p", options={"mlflow": {"tracking_uri": "sqlite:///x"}})
    check_trackers(options)
    half(tmp_path / "run", options, range(1, 2))
    half(tmp_path / "run", options, range(2, 3), rewound=1, config={"train": {"learning_rate": 2e-4}})
    assert heard.of("params") == [({"train.learning_rate": "0.0001"},)]
    assert heard.of("uri") == [("sqlite:///x",)] * 2
    assert heard.of("experiment") == [("p",)] * 2


def test_what_it_lacks_by_a_kill_is_told_and_nothing_twice(tmp_path, installed):
    """A thread may lag behind the journal: what it was told counts, not what was written."""
    heard = installed("trackio")
    options = TrackOptions(report_to=("trackio",))
    half(tmp_path / "run", options, range(1, 3))
    journal = Journal(tmp_path / "run")
    for step in (3, 4):  # written, and never told
        journal.metric(step=step, steps=9, loss=0.0)
    half(tmp_path / "run", options, range(3, 6), rewound=2)
    assert [step for data, step in heard.of("log") if "train/loss" in data] == [1, 2, 3, 4, 5]


def test_tensorboard_has_each_step_once_and_the_events_of_both_halves(tmp_path):
    options = TrackOptions()
    half(tmp_path / "run", options, range(1, 5))
    half(tmp_path / "run", options, range(3, 7), rewound=2)
    events = events_of(tmp_path / "run" / "tensorboard")
    losses = [(step, value) for step, values in events for tag, value in values if tag == "train/loss"]
    assert losses == [(step, pytest.approx(3.0 - step / 10)) for step in range(1, 7)]
    tags = [tag for _, values in events for tag, _ in values]
    assert [tags.count(tag) for tag in ("events/plan", "events/resumed", "before/loss")] == [1, 1, 1]


def failing(*_, **__):
    raise ConnectionError("no route to host")


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_told_of_once_and_the_others_go_on(tmp_path, installed, where):
    heard = installed("trackio")
    installed("swanlab", **{where: failing})
    said = []
    half(tmp_path / "run", TrackOptions(report_to=("swanlab", "trackio")), range(1, 5), said=said)
    assert len([data for data, _ in heard.of("log") if "train/loss" in data]) == 4
    (event,) = [event for event in Journal(tmp_path / "run").events() if event["kind"] == "tracker"]
    assert event["reason"] == "swanlab: ConnectionError: no route to host; it is told nothing more"
    assert said == [f"tracker {event['reason']}"]


def test_nobody_waits_for_a_tracker_that_hangs(tmp_path, installed, monkeypatch):
    go_on = threading.Event()

    def log(metrics, step=None):
        go_on.wait(PATIENCE_SECONDS)
        raise ConnectionError

    installed("trackio", log=log)
    monkeypatch.setattr(tracking, "END_SECONDS", 0)
    try:
        half(tmp_path / "run", TrackOptions(report_to=("trackio",)), range(1, 5))
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "tracker trackio"]
    finally:
        go_on.set()
    thread.join(PATIENCE_SECONDS)  # what it says afterwards is told nobody
    assert [row["step"] for row in Journal(tmp_path / "run").metrics()] == [1, 2, 3, 4]
    (event,) = [event for event in Journal(tmp_path / "run").events() if event["kind"] == "tracker"]
    assert "it had not ended after 0 s" in event["reason"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"report_to": ["wandbb"]}, "'wandbb' did you mean 'wandb'"),
        ({"report_to": ["trackio", "trackio"]}, "named twice"),
        ({"options": {"wandb": {"mode": "offline"}}}, "options.wandb has no effect without wandb in report_to"),
        ({"report_to": ["wandb"], "options": {"wandb": {"id": "x"}}}, "id: the run has these"),
    ],
)
def test_options_that_cannot_be(given, said):
    with pytest.raises(ValueError, match=said):
        TrackOptions(**given)


@pytest.mark.parametrize("given", ["none", None, []])
def test_none_is_told(given, tmp_path):
    options = TrackOptions(report_to=given)
    assert options.report_to == ()
    assert tracked(Journal(tmp_path), options, {}, "mine", print).hearer is None


def test_a_package_that_is_not_there_or_has_no_such_option_is_an_error(installed, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="wandb is not installed") as caught:
        check_trackers(TrackOptions(report_to=("wandb",)))
    assert caught.value.fix == "pip install wandb, or leave it out"
    monkeypatch.undo()
    installed("wandb")
    with pytest.raises(ConfigError, match="'entitty' did you mean 'entity'"):
        check_trackers(TrackOptions(report_to=("wandb",), options={"wandb": {"entitty": "x"}}))
    with pytest.raises(ConfigError, match="tensorboard has none"):
        check_trackers(TrackOptions(options={"tensorboard": {"x": 1}}))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder with what runs learn from, which is the current one."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)


@pytest.mark.usefixtures("data")
def test_a_run_tells_its_options_its_rows_and_its_proof(tiny_model, installed):
    heard = installed("wandb")
    recipe = recipe_of("sft", tiny_model, track={"report_to": ["wandb", "tensorboard"], "project": "foxes"})
    directory = run(recipe, Lines(), "resume")
    rows = Journal(directory).metrics()
    assert [(data["train/loss"], step) for data, step in heard.of("log") if "train/loss" in data] == [
        (row["loss"], row["step"]) for row in rows
    ]
    (begun,) = heard.of("init")[0]
    assert (begun["project"], begun["name"]) == ("foxes", directory.name)
    summary = {key: value for (found,) in heard.of("sum") for key, value in found.items()}
    results = Journal(directory).results()
    assert summary["before/loss"] == results["before"]["loss"]
    assert summary["after/loss"] == results["after"]["loss"]
    assert len(events_of(directory / "tensorboard")) > len(rows)


@pytest.mark.usefixtures("data")
def test_nothing_is_touched_for_a_tracker_that_is_not_there(tiny_model):
    recipe = recipe_of("sft", tiny_model, track={"report_to": ["trackio"]})
    assert "trackio" not in sys.modules
    with pytest.raises(ConfigError, match="trackio is not installed"):
        run(recipe, Lines(), "resume")
    assert not recipe.directory.exists()


@pytest.mark.usefixtures("data")
def test_a_run_that_stops_ends_its_trackers(tiny_model, installed):
    heard = installed("trackio")
    recipe = recipe_of("ppo", tiny_model, track={"report_to": ["trackio"]})
    faulty = recipe.reward.model_copy(update={"function": recipe.reward.function.replace(":short", ":faulty")})
    with pytest.raises(TrainingError):
        run(recipe.model_copy(update={"reward": faulty}), Lines(), "resume")
    assert heard[-1] == ("finish",)
    assert any("events/stopped" in data for data, _ in heard.of("log"))
