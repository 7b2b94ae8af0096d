"""Dashboard, rules and runbook: made by what makes them, about metrics that exist, with queries that answer.

One Prometheus scrapes one dsfs under load, on all read paths, with a dataset that is FAILED and one that is refused.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsfs.errors import ConfigError
from dsfs.manifest.schema import SourceType
from dsfs.sources.registry import check_type
from tests.manifests import dataset, write_manifests
from tests.mounts import Mount, Mounts, dsfs, eventually
from tests.servers import hostile as web
from tests.servers.prometheus_server import Prometheus, programs, prometheus

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/dsfs.json").read_text())
RULES_FILE = ROOT / "deploy/prometheus/rules.yaml"
RULES_TEST = Path(__file__).parent / "rules_test.yaml"
RULES = [rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
METRIC = re.compile(r"\bdsfs_[a-z_]+")
HERE = ("DsfsDatasetFailed", "DsfsCredentialsRefused")
"""Alerts about what is the case in this test; the others are about what must not be."""
VARIABLES = {"$node": ".*", "$namespace": ".*", "$dataset": ".*", "$__rate_interval": "15s"}


def queries() -> dict[str, str]:
    """Every query of the dashboard, as Grafana would send it: "panel, letter" → expression."""
    found = {}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            found[f"{panel['title']}, {target['refId']}"] = expression
    return found


def test_dashboard_is_what_its_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "deploy/grafana/make.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_dashboard_has_no_datasource_of_its_own() -> None:
    """One is chosen at the top, whatever it is called where it is imported."""
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert len(panels) > 20
    for panel in panels:
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}", panel["title"]
    names = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert names == ["datasource", "node", "namespace", "dataset"]


@pytest.mark.parametrize(
    "arguments",
    [["check", "rules", str(RULES_FILE)], ["test", "rules", str(Path(__file__).parent / "rules_test.yaml")]],
)
def test_rules(arguments: list[str]) -> None:
    done = subprocess.run([programs()[1], *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_has_a_paragraph_in_the_runbook() -> None:
    tests = yaml.safe_load(RULES_TEST.read_text())["tests"]
    fires = {case["alertname"] for test in tests for case in test.get("alert_rule_test", []) if case["exp_alerts"]}
    alerts = {rule["alert"] for rule in ALERTS}
    assert fires == alerts
    headings = re.findall(r"^## (\w+)$", (ROOT / "deploy/runbook.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(alerts)
    for rule in ALERTS:
        assert rule["annotations"]["runbook"] == f"deploy/runbook.md#{rule['alert'].lower()}"
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_types_that_are_never_read_count_as_failed_nowhere() -> None:
    """They are FAILED by design: an alert about them would fire for ever."""
    never = []
    for kind in SourceType:
        try:
            check_type(kind)
        except ConfigError:
            never.append(str(kind))
    left_out = f'source_type!~"{"|".join(sorted(never))}"'
    (alert,) = [rule for rule in ALERTS if rule["alert"] == "DsfsDatasetFailed"]
    for expression in (alert["expr"], queries()["Datasets FAILED, A"]):
        assert left_out in expression


# -- under load -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def under_load(mount: Mount) -> Iterator[None]:
    """Somebody reads all that can be read, and tries what cannot."""
    stop = threading.Event()

    def read(name: str, path: str) -> None:
        fd = os.open(mount.mountpoint / "team" / name / path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            while os.read(fd, 1 << 20):
                continue
        finally:
            os.close(fd)

    def read_on() -> None:
        while not stop.is_set():
            for name in ("openless", "passthrough", "daemon"):
                for path in ("a", "b", "c"):
                    read(name, path)
            with pytest.raises(PermissionError):
                read("refused", "file")
            stop.wait(0.05)  # others want the processor too

    reader = threading.Thread(target=read_on)
    reader.start()
    try:
        yield
    finally:
        stop.set()
        reader.join()


@pytest.fixture
def scraped(mounts: Mounts, tmp_path: Path) -> Iterator[Prometheus]:
    source = tmp_path / "source"
    source.mkdir()
    for name in "abc":
        (source / name).write_bytes(os.urandom(300_000))
    with web.hostile() as server:
        server.files["/file"] = os.urandom(1000)
        paths = ("openless", "passthrough", "daemon")
        manifest = write_manifests(
            tmp_path / "m.yaml",
            *(dataset(path, source, "team", readPath=path) for path in paths),
            dataset("refused", f"{server.url}file", "team", type="HTTP", readPath="daemon"),
            dataset("failed", "s3://bucket", "team", type="S3", secretRef="none"),
        )
        mount = mounts.mount("-f", manifest)
        mount.expect_log("fetch failed|listing failed|dataset cannot be used")
        for name in (*paths, "refused"):
            mount.wait_phase("READY", name)
        server.always("/file", web.status(403))
        (tmp_path / "order").write_text("a\nb\n")
        done = dsfs("hint", "team/daemon", "--order", tmp_path / "order", "-m", mount.mountpoint)
        assert done.returncode == 0, done.stderr
        rules = RULES_FILE.read_text().replace("interval: 30s", "interval: 1s")
        with under_load(mount), prometheus(tmp_path, [str(mount.http)], rules) as found:
            yield found


def answers(found: Prometheus) -> Callable[[str], bool]:
    """Whether an expression has a number."""

    def has_number(expression: str) -> bool:
        return any(not math.isnan(value) for _labels, value in found.samples(expression))

    return has_number


def test_every_query_answers(scraped: Prometheus) -> None:
    wanted: dict[str, str] = {
        **queries(),
        **{rule["record"]: rule["record"] for rule in RULES if "record" in rule},
        **{rule["alert"]: rule["expr"] for rule in ALERTS if rule["alert"] in HERE},
    }
    has_number = answers(scraped)

    def all_answer() -> bool:
        for name in [name for name, expression in wanted.items() if has_number(expression)]:
            del wanted[name]
        return not wanted

    try:
        eventually(all_answer, 120, "every query answers")
    except AssertionError as error:
        raise AssertionError(f"no data: {wanted}") from error
    picture = subprocess.run(
        [sys.executable, "deploy/grafana/picture.py", scraped.url, "1"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for panel in DASHBOARD["panels"]:
        assert f">{panel['title']}</h" in picture
    assert "No data" not in picture
    groups: list[dict[str, Any]] = scraped.ask("rules")["groups"]
    unwell = [rule["name"] for group in groups for rule in group["rules"] if rule["health"] != "ok"]
    assert unwell == []
    known = set(scraped.ask("label/__name__/values"))
    used = set(METRIC.findall("\n".join([*queries().values(), *(rule["expr"] for rule in RULES)])))
    assert used <= known | {name for name in used if name.endswith("_")}, "metrics that nobody exports"
    for label, _values in (("node", "node1"), ("namespace", "team"), ("dataset", "openless")):
        assert _values in scraped.ask(f"label/{label}/values", **{"match[]": "dsfs_dataset_info"})
