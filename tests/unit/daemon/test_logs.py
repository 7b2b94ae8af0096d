"""Log lines: one form for all, one line a cause, no secret."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SAY = """
import logging, structlog
from daemon import logs
logs.configure(debug=False, log_format="{form}")
log = structlog.get_logger()
for number in range(3):
    log.warning("fetch failed", dataset="t/a", error="SourceTimeout", reason="no answer from https://u:pw@host/?token=tt", number=number)
    log.info("request failed", dataset="t/a", operation="read", errno="EIO")
log.info("request failed", dataset="t/a", operation="read", errno="ESTALE")
log.info("request failed", dataset="t/b", operation="read", errno="EIO", password="hunter2")
log.debug("not shown")
try:
    raise ValueError("a\\nb")
except ValueError:
    log.exception("went wrong")
    logging.getLogger("aiohttp").error("theirs: https://u:pw@host/", exc_info=True)
logging.getLogger("aiohttp").info("not shown")
"""  # noqa: E501


def said(form: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SAY.format(form=form)], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    for secret in ("pw", "tt?", "hunter2", "=tt"):
        assert secret not in done.stderr
    return done.stderr.splitlines()


def test_json_is_an_object_a_line() -> None:
    lines = [json.loads(line) for line in said("json")]
    assert [(line["level"], line["event"], line.get("dataset"), line.get("errno")) for line in lines] == [
        ("warning", "fetch failed", "t/a", None),
        ("info", "request failed", "t/a", "EIO"),
        ("info", "request failed", "t/a", "ESTALE"),
        ("info", "request failed", "t/b", "EIO"),
        ("error", "went wrong", None, None),
        ("error", "theirs: https://u:***@host/", None, None),
    ]
    assert all("timestamp" in line for line in lines)
    assert "ValueError" in lines[4]["exception"]
    assert "ValueError" in lines[5]["exception"]


def test_console_is_key_value() -> None:
    lines = said("console")
    assert lines[0].startswith("timestamp=")
    assert 'level=warning event="fetch failed" dataset=t/a error=SourceTimeout' in lines[0]
    assert any("logger=aiohttp" in line and "level=error" in line for line in lines)


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_line_break_in_a_value_breaks_no_line(form: str) -> None:
    assert len(said(form)) == 6


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_log_on_a_full_disk_costs_lines_and_nothing_else(form: str) -> None:
    with open("/dev/full", "wb") as full:
        code = f"{SAY.format(form=form)}print('goes on')"
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, check=False)
    assert (done.returncode, done.stdout) == (0, b"goes on\n")


def test_a_keeper_survives_a_log_on_a_full_disk() -> None:
    code = """
from daemon.keeping.loop import Loop, say

loop = Loop()

def fails():
    say("about to fail")
    raise RuntimeError

loop.after(0.0, fails)
loop.after(0.01, loop.stop)
loop.run()
print("goes on")
"""
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, check=False)
    assert (done.returncode, done.stdout) == (0, b"goes on\n")
