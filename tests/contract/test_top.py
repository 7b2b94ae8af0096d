"""``dsfs top`` and ``dsfs stats``: over the control socket, without --http."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path

from tests.contract.conftest import one_line_failure, wrong_usage
from tests.mounts import DSFS, Mount, Mounts, clean_environment, dsfs


def plain_mount(mounts: Mounts, source: Path) -> Mount:
    """Without --http."""
    mountpoint, cache_dir = mounts.place()
    mount = mounts.adopt(mountpoint, cache_dir)
    done = dsfs("mount", source, mountpoint, f"--cache-dir={cache_dir}")
    assert done.returncode == 0, done.stderr
    mount.wait_phase("READY")
    return mount


def test_top_once(mounts: Mounts, source: Path) -> None:
    mount = plain_mount(mounts, source)
    done = dsfs("top", "-m", mount.mountpoint, "--once", "--interval=0.2")
    assert done.returncode == 0, done.stderr
    assert "default/source" in done.stdout
    assert "READY" in done.stdout
    assert "OPERATION" in done.stdout


def test_top_json_sees_what_is_read(mounts: Mounts, source: Path) -> None:
    mount = plain_mount(mounts, source)
    data = (source / "sub/b.bin").read_bytes()
    stop = threading.Event()

    def read_on() -> None:
        while not stop.is_set():
            assert (mount.root / "sub/b.bin").read_bytes() == data
            assert (mount.root / "a.txt").read_bytes() == b"first"

    reader = threading.Thread(target=read_on)
    reader.start()
    try:
        argv = [DSFS, "top", "-m", str(mount.mountpoint), "--json", "--interval=0.5"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=clean_environment()) as top:
            assert top.stdout is not None
            looks = [json.loads(top.stdout.readline()) for _ in range(6)]
            top.terminate()
    finally:
        stop.set()
        reader.join()
    for look in looks:
        assert look["mountpoint"] == str(mount.mountpoint)
        (seen,) = look["datasets"]
        assert (seen["namespace"], seen["name"], seen["phase"]) == ("default", "source", "READY")
        assert seen["bytes"] == len(data) + len(b"first")
    assert any(look["datasets"][0]["read_bytes_s"] > 0 for look in looks)


def test_stats_prints_lines(mounts: Mounts, source: Path) -> None:
    mount = plain_mount(mounts, source)
    done = dsfs("stats", "-m", mount.mountpoint, "--interval=0.2", "--count=3")
    assert done.returncode == 0, done.stderr
    groups, columns, *lines = done.stdout.splitlines()
    assert "origin" in groups
    assert "hit" in columns
    assert len(lines) == 3
    assert {len(line) for line in lines} == {len(columns)}
    done = dsfs("stats", "-m", mount.mountpoint, "--interval=0.2", "--count=2", "--json")
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(looks) == 2
    assert all({"datasets", "operations", "cpu"} <= look.keys() for look in looks)


def test_a_new_server_is_waited_for(mounts: Mounts, source: Path) -> None:
    mount = plain_mount(mounts, source)
    argv = [DSFS, "stats", "-m", str(mount.mountpoint), "--json", "--interval=1.5", "--count=4"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=clean_environment()) as stats:
        assert stats.stdout is not None
        first = json.loads(stats.stdout.readline())
        mount.kill_server()
        rest = [json.loads(line) for line in stats.stdout]
    assert stats.returncode == 0
    assert [first["restarts"], rest[-1]["restarts"]] == [0, 1]
    assert all(look["cpu"] >= 0 for look in rest)


def test_wrong_use(tmp_path: Path) -> None:
    one_line_failure(dsfs("top", "-m", tmp_path, "--once"), str(tmp_path))
    one_line_failure(dsfs("stats", "-m", tmp_path), str(tmp_path))
    wrong_usage(dsfs("top", "--interval=0"), "--interval")
    wrong_usage(dsfs("stats", "--count=-1"), "--count")
