"""Which cache directory a mount has that names none."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon import running
from daemon.cli import cache_choice
from daemon.cli.cache_choice import cache_dir_of, choosing
from daemon.settings import Settings
from dsfs import client


@pytest.fixture(autouse=True)
def runtime_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    root = tmp_path / "run"
    root.mkdir()
    for module in (running, client, cache_choice):
        monkeypatch.setattr(module, "runtime_root", lambda: str(root))
    monkeypatch.setattr(client, "runtime_roots", lambda: [str(root)])
    return root


@pytest.fixture
def default(tmp_path: Path) -> str:
    return str(tmp_path / "cache/dsfs")


def started(mountpoint: str, default: str) -> str:
    """As a mount that begins; the cache directory it chose."""
    with choosing():
        chosen = cache_dir_of(mountpoint, default)
        runtime_dir = running.runtime_dir_of(mountpoint)
        os.makedirs(runtime_dir, exist_ok=True)
        Settings(mountpoint, runtime_dir, chosen).save()
    return chosen


@contextmanager
def runs(mountpoint: str) -> Iterator[None]:
    """As a keeper of it."""
    runtime_dir = running.runtime_dir_of(mountpoint)
    Path(runtime_dir, "keeper.json").write_text(f'{{"mountpoint": "{mountpoint}"}}')
    with open(f"{runtime_dir}/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_the_second_mount_has_one_of_its_own(default: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert started("/a", default) == default
    assert capsys.readouterr().err == ""
    with runs("/a"):
        own = started("/b", default)
        assert own.startswith(f"{default}-")
        said = capsys.readouterr().err
        assert (said.count("\n"), own in said, "as /a uses" in said, "--cache-dir" in said) == (1, True, True, True)
        with runs("/b"):
            assert started("/c", default) not in (default, own)
    assert started("/b", default) == default, "it has cached nothing in its own"


def test_what_a_mount_has_cached_in_its_own_it_finds_again(default: str, capsys: pytest.CaptureFixture[str]) -> None:
    started("/a", default)
    with runs("/a"):
        own = started("/b", default)
    os.makedirs(own)
    capsys.readouterr()
    assert started("/b", default) == own
    assert own in capsys.readouterr().err
    assert started("/a", default) == default
    assert started("/c", default) == default


def test_a_mount_that_is_just_starting_has_its_directory_already(default: str) -> None:
    with running.starting("/a"):
        assert started("/a", default) == default
        assert started("/b", default) != default
    assert started("/b", default) == default, "it did not come about"


def test_a_directory_that_a_mount_was_given_may_be_the_default_one(default: str, tmp_path: Path) -> None:
    os.makedirs(default)
    (tmp_path / "link").symlink_to(default)
    runtime_dir = running.runtime_dir_of("/a")
    os.makedirs(runtime_dir)
    Settings("/a", runtime_dir, str(tmp_path / "link")).save()
    with runs("/a"):
        assert started("/b", default) != default


def test_mounts_that_start_at_once_do_not_choose_the_same(default: str) -> None:
    """Each is seen to use what it chose before the next one looks."""

    def start(mountpoint: str) -> str:
        with running.starting(mountpoint):
            chosen = started(mountpoint, default)
            all_chosen.wait(10)
        return chosen

    all_chosen = threading.Barrier(4)
    with ThreadPoolExecutor(4) as threads:
        chosen = list(threads.map(start, ["/a", "/b", "/c", "/d"]))
    assert len(set(chosen)) == 4
    assert default in chosen
