"""The units for nodes without Kubernetes: systemd takes them, and finds little to object to."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.mounts import DSFS, dsfs

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
# Exposure, of 100, by systemd's own reckoning; over 50 is "medium", over 70 "exposed".
MOST_EXPOSED = {"dsfs-keeper.service": 38, "dsfs.service": 28}

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def settings(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        if match := re.fullmatch(r"([A-Za-z]+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as they would be installed here."""
    for unit in UNITS.glob("*.service"):
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/dsfs/bin/dsfs", DSFS))
    return tmp_path


def test_systemd_understands_every_line(units: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(units.glob("*.service"))], capture_output=True, text=True
    )
    about_ours = [line for line in (done.stdout + done.stderr).splitlines() if "dsfs" in line]
    assert about_ours == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("unit", MOST_EXPOSED)
def test_exposure_is_as_low_as_it_was(units: Path, unit: str) -> None:
    argv = ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={MOST_EXPOSED[unit]}"]
    done = subprocess.run([*argv, units / unit], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout.splitlines()[-1:]


def test_the_keeper_has_no_mount_namespace_of_its_own() -> None:
    """What is mounted in one would never be seen on the node. The names are those of systemd.exec(5)."""
    makes_one = re.compile(
        r"Protect(?!Clock|Hostname).*|Private.*|Read(Only|Write)Paths|InaccessiblePaths|ExecPaths|NoExecPaths"
        r"|Bind.*Paths|TemporaryFileSystem|Root(Directory|Image).*|MountAPIVFS|MountFlags|DynamicUser|MountImages"
    )
    assert [key for key in settings("dsfs-keeper.service") if makes_one.fullmatch(key)] == []


def test_every_flag_is_one_that_dsfs_has() -> None:
    for unit in MOST_EXPOSED:
        (line,) = settings(unit)["ExecStart"]
        _program, verb, *words = shlex.split(line)
        known = set(re.findall(r"--[a-z-]+", dsfs(verb, "--help").stdout))
        assert {word for word in words if word.startswith("--")} <= known, verb
