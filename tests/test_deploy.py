"""What stands in deploy/: every file is read, and asks for nothing that is not there. No container is started."""

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from danlu import cli
from danlu.commands.answering import serve
from danlu.generate.answers import Load
from danlu.serve.metrics import Metrics
from danlu.serve.options import ServeOptions

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
pytestmark = pytest.mark.skipif(not DEPLOY.is_dir(), reason="not a checkout")
# Labels and their values are no metrics, nor is what Prometheus itself adds.
METRIC = re.compile(r"\bdanlu_[a-z_]+")


@pytest.fixture(scope="module")
def exposed():
    """Names in a server's /metrics, those of histograms with their endings."""
    fields = dict.fromkeys(Load.__dataclass_fields__, 1)
    metrics = Metrics(lambda: Load(**fields))
    metrics.requests.labels("ok").inc()
    return {line.split("{")[0].split(" ")[0] for line in metrics.text().decode().splitlines() if line[:1] != "#"}


def board():
    return json.loads((DEPLOY / "grafana" / "danlu.json").read_text("utf-8"))


def expressions():
    found = [target["expr"] for panel in board()["panels"] for target in panel["targets"]]
    alerts = yaml.safe_load((DEPLOY / "alerts.yaml").read_text("utf-8"))
    return found + [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_yaml_is_read(path):
    assert isinstance(yaml.safe_load(path.read_text("utf-8")), dict)


@pytest.mark.parametrize("expression", expressions())
def test_boards_and_alerts_ask_for_metrics_that_a_server_has(expression, exposed):
    names = set(METRIC.findall(expression)) - {"danlu_prometheus"}
    assert names or "up{" in expression
    assert names - exposed == set()
    assert expression.count("(") == expression.count(")")


def test_no_metric_of_the_server_is_missing_on_the_board(exposed):
    shown = set(METRIC.findall(" ".join(expressions())))
    parts = {name for name in exposed if name.endswith(("_created", "_sum", "_count"))}
    assert exposed - parts - shown == set()


def test_the_board_names_the_source_that_is_provisioned_and_asks_nobody():
    """A board that was exported for sharing names a variable that a provisioned one never gets."""
    (source,) = yaml.safe_load((DEPLOY / "grafana" / "datasource.yaml").read_text("utf-8"))["datasources"]
    document = board()
    assert document["id"] is None
    assert "__inputs" not in document
    assert "${" not in json.dumps(document)
    panels = document["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert {target["datasource"]["uid"] for panel in panels for target in panel["targets"]} == {source["uid"]}
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_outcomes_in_alerts_are_those_that_are_counted():
    source = (Path(cli.__file__).parent / "serve" / "api.py").read_text("utf-8")
    for outcome in re.findall(r'outcome=~?"([^"]+)"', " ".join(expressions())):
        assert all(f'"{name}"' in source for name in outcome.split("|")), outcome


def test_services_are_told_flags_that_there_are():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    unit = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes="#")
    unit.optionxform = str
    unit.read(DEPLOY / "danlu.service")
    flags = {word for word in compose["services"]["serve"]["command"] if str(word).startswith("--")}
    flags |= {word for word in shlex.split(unit["Service"]["ExecStart"]) if word.startswith("--")}
    assert flags
    assert {flag.removeprefix("--") for flag in flags} <= set(ServeOptions.model_fields)
    assert serve.__name__ == "serve"


def test_files_that_the_services_mount_and_the_image_copies_are_there():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    mounted = [one for service in compose["services"].values() for one in service.get("volumes", ()) if one[0] == "."]
    assert mounted
    assert all((DEPLOY / one.split(":")[0]).is_file() for one in mounted)
    image = (DEPLOY / "Dockerfile").read_text("utf-8")
    copied = [word for line in re.findall(r"^COPY (.+)$", image, re.MULTILINE) for word in line.split()[:-1]]
    assert copied
    assert all((ROOT / word).exists() for word in copied)


def test_the_image_starts_no_shell_and_runs_as_nobody_special():
    """A shell would keep signals to itself; a directory that the user may not write fails at the first download."""
    image = (DEPLOY / "Dockerfile").read_text("utf-8")
    assert 'ENTRYPOINT ["danlu"]' in image
    assert image.index("USER 10001") > image.index("chown -R danlu:0 /data")
    kept = dict(re.findall(r"^(?:ENV|   ) (\w+)=(/\S+)", image, re.MULTILINE))
    assert kept.keys() >= {"DANLU_CACHE", "HF_HOME", "MPLCONFIGDIR"}
    assert all(path.startswith("/data/") for path in kept.values())
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]["serve"]
    assert isinstance(compose["command"], list)
    assert compose["init"] is True
    patience = ServeOptions.model_fields["shutdown_timeout_seconds"].default
    assert int(compose["stop_grace_period"].rstrip("s")) > patience
    assert "TimeoutStopSec=45" in (DEPLOY / "danlu.service").read_text("utf-8")


def test_the_key_is_never_part_of_the_project():
    assert "deploy/api_key" in (ROOT / ".gitignore").read_text("utf-8")
    assert "deploy/api_key" in (ROOT / ".dockerignore").read_text("utf-8")
