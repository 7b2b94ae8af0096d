"""A real Prometheus that scrapes what a test gives it, each second."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.mounts import eventually
from tests.servers.process import HOST, free_ports, program, running


class Prometheus:
    """The handle."""

    def __init__(self, port: int) -> None:
        self.url = f"http://{HOST}:{port}"

    def is_ready(self) -> bool:
        """It listens before it answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):
                return True
        except urllib.error.HTTPError:
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        """One call of its API; the data of the answer."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def samples(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """What an expression is now: labels and a number each."""
        found = self.ask("query", query=expression)
        assert found["resultType"] == "vector", expression
        return [(each["metric"], float(each["value"][1])) for each in found["result"]]


def programs() -> tuple[str, str]:
    """prometheus and promtool; deploy/setup.sh dev brings them."""
    server, tool = program("prometheus"), program("promtool")
    assert server is not None, "no prometheus (bash deploy/setup.sh dev)"
    assert tool is not None, "no promtool (bash deploy/setup.sh dev)"
    return server, tool


@contextlib.contextmanager
def prometheus(directory: Path, scraped: Sequence[str], rules: str = "") -> Iterator[Prometheus]:
    """One that scrapes HOST:PORTs with the labels of README's example, and evaluates rules each second."""
    (port,) = free_ports(1)
    (directory / "rules.yaml").write_text(rules or "groups: []")
    config = {
        "global": {"scrape_interval": "3s", "scrape_timeout": "3s", "evaluation_interval": "1s"},
        "rule_files": [str(directory / "rules.yaml")],
        "scrape_configs": [
            {
                "job_name": "dsfs",
                "honor_labels": True,
                "static_configs": [
                    {"targets": [target], "labels": {"node": f"node{number}"}}
                    for number, target in enumerate(scraped, 1)
                ],
            }
        ],
    }
    (directory / "prometheus.json").write_text(json.dumps(config))  # JSON is YAML
    argv = [
        programs()[0],
        f"--config.file={directory}/prometheus.json",
        f"--storage.tsdb.path={directory}/tsdb",
        f"--web.listen-address={HOST}:{port}",
    ]
    with running(argv, port, directory / "prometheus.log"):
        found = Prometheus(port)
        eventually(found.is_ready, 30, "Prometheus is ready")
        yield found
