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

from daemon import cache_users, doctor, running
from daemon.cache_users import own_of
from daemon.cli import cache_choice
from daemon.cli.cache_choice import cache_dir_of, choosing
from daemon.settings import Settings
from dsfs import client
from dsfs.cache.layout import open_layout
from dsfs.errors import MountError


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


def cached(directory: str) -> None:
    """As a server that has brought one object."""
    layout = open_layout(directory)
    Path(layout.object_path("ab" * 32)).touch()
    layout.release()


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
    open_layout(own).release()
    assert started("/b", default) == default, "it has cached nothing in its own"


def test_what_a_mount_has_cached_in_its_own_it_finds_again(default: str, capsys: pytest.CaptureFixture[str]) -> None:
    started("/a", default)
    with runs("/a"):
        own = started("/b", default)
    cached(own)
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


def test_its_own_is_on_the_disk_that_the_default_one_is_a_link_to(default: str, tmp_path: Path) -> None:
    large = tmp_path / "large/dsfs"
    large.mkdir(parents=True)
    os.makedirs(os.path.dirname(default))
    os.symlink(large, default)
    started("/a", default)
    with runs("/a"):
        assert started("/b", default).startswith(f"{large}-")


def test_beside_a_mount_point_is_another_disk(default: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: path == default)
    cached(own_of("/b", default))
    assert started("/b", default) == default
    with runs("/b"), pytest.raises(MountError, match=f"{default} is used by /b.*--cache-dir"):
        started("/c", default)


def test_nobody_waits_for_the_cache_of_another_that_hangs(
    default: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = str(tmp_path / "hung")
    runtime_dir = running.runtime_dir_of("/a")
    os.makedirs(runtime_dir)
    Settings("/a", runtime_dir, hung).save()
    realpath = os.path.realpath

    def followed(path: str, **strict: bool) -> str:
        assert path != hung, "it would wait there"
        return realpath(path, **strict)

    monkeypatch.setattr(os.path, "realpath", followed)
    assert started("/b", default) == default, "of one that does not run nothing is asked"
    monkeypatch.setattr(
        cache_users, "errno_of_look", lambda path, _within_s: cache_users.NO_ANSWER if path == hung else 0
    )
    with runs("/a"):
        assert started("/c", default) == default


def test_who_names_a_directory_waits_for_nobody(default: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_choice, "default_cache_dir", lambda: default)
    monkeypatch.setattr(cache_choice, "_OTHERS_S", 0.1)
    with choosing():
        with choosing(str(tmp_path / "another")):
            pass
        runtime_dir = running.runtime_dir_of("/a")
        for named in (None, default):
            os.makedirs(runtime_dir)
            with pytest.raises(MountError, match="--cache-dir"):
                cache_choice.save_with_cache(Settings("/a", runtime_dir, default), named)
            assert not os.path.exists(runtime_dir)
    with choosing():
        pass


def test_a_mount_that_becomes_ready_meanwhile_is_seen(default: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started("/a", default)
    ready = False

    def is_starting(_runtime_dir: str) -> bool:
        nonlocal ready
        before, ready = not ready, True
        return before

    def look(path: str) -> running.Running | None:
        nonlocal ready
        alive, ready = ready, True
        return running.Running(path, "/a", 1, alive, "")

    monkeypatch.setattr(running, "is_starting", is_starting)
    monkeypatch.setattr(running, "look", look)
    assert started("/b", default) != default


def test_the_doctor_tells_which_own_directories_no_mount_has(default: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "default_cache_dir", lambda: default)
    started("/a", default)
    with runs("/a"):
        own = started("/b", default)
        cached(own)
        os.makedirs(f"{default}-backup/objects")
        with runs("/b"):
            assert [check for check in doctor.examine() if check.name == "cache of no mount"] == []
        (unused,) = [check for check in doctor.examine() if check.name == "cache of no mount"]
    assert own in unused.result
    assert unused.remedy.startswith(f"rm -r {own}")
