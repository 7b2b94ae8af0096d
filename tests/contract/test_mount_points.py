"""Where a mount is, as it is named on the command line and shown in ``dsfs status``: paths, links, ports, sources."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.contract.conftest import one_line_failure, wrong_usage
from tests.manifests import dataset, write_manifests
from tests.mounts import HOST, Mount, Mounts, clean_environment, dsfs, eventually, is_mounted, runtime_dir_of
from tests.servers.process import free_ports


def status(*argv: str | Path) -> dict[str, Any]:
    done = dsfs("status", "--json", *argv)
    assert done.returncode == 0, done.stderr
    (only,) = json.loads(done.stdout)["mounts"]
    assert isinstance(only, dict)
    return only


def test_status_and_restart_take_it_in_both_ways(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source)
    where = mount.mountpoint
    before = status("-m", where)
    for argv in ([where], ["--mountpoint", where], [where, "-m", where]):
        assert status(*argv)["mountpoint"] == str(where)
    assert dsfs("restart", "-m", where).returncode == 0
    assert status("-m", where)["server_pid"] != before["server_pid"]
    wrong_usage(dsfs("restart", where, "-m", where.parent), "two mount points")


_WITH_DEFAULT = """
import sys
from daemon.cli import app, mount
default = sys.argv.pop(1)
mount.default_cache_dir = lambda: default
app.main()
"""


def test_mounts_that_name_no_cache_directory_have_one_each(mounts: Mounts, source: Path, tmp_path: Path) -> None:
    """Also when they are started at once, and each finds its own again. The default one of root is the machine's."""
    default = str(tmp_path / "cache/dsfs")

    def start(place: Path) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", _WITH_DEFAULT, default, "mount", source, place, "--min-free=0"]
        return subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=clean_environment())

    places = [mounts.place()[0] for _mount in range(2)]
    for place in places:
        mounts.adopt(place, tmp_path)
    before: list[str] = []
    for _time in range(2):
        started = [start(place) for place in places]
        said = [process.communicate(timeout=60)[1] for process in started]
        assert [process.returncode for process in started] == [0, 0], said
        caches = [status(place)["cache_dir"] for place in places]
        own = [cache for cache in caches if cache != default]
        assert len(own) == 1
        assert sorted(len(each.splitlines()) for each in said) == [0, 1], said
        assert own[0] in "".join(said)
        assert before in ([], caches)
        before = caches
        assert [(place / "a.txt").read_bytes() for place in places] == [b"first"] * 2
        assert [dsfs("unmount", place).returncode for place in places] == [0, 0]


def test_behind_links(mounts: Mounts, source: Path, tmp_path: Path) -> None:
    place, cache = mounts.place()
    mounts.adopt(place, cache)
    (tmp_path / "other").symlink_to(place.parent)
    link, beside = tmp_path / "link", tmp_path / "other" / place.name
    link.symlink_to(f"other/{place.name}")
    for path, elsewhere in ((link, beside), (beside, link)):
        assert dsfs("mount", source, path, f"--cache-dir={cache}").returncode == 0
        assert (path / "a.txt").read_bytes() == b"first"
        assert status(elsewhere)["mountpoint"] == str(place)
        assert dsfs("evict", "source", "-m", elsewhere).returncode == 0
        assert dsfs("probe", elsewhere).returncode == 0
        one_line_failure(dsfs("mount", source, elsewhere, f"--cache-dir={cache}"), "already")
        assert dsfs("unmount", path).returncode == 0
        assert not is_mounted(place)
        assert os.listdir(path) == []


def test_a_mount_of_somebody_else_is_left_alone(mounts: Mounts, source: Path, tmp_path: Path) -> None:
    mount = mounts.mount(source)
    known = runtime_dir_of(mount.mountpoint)
    os.rename(known, tmp_path / "not known here")
    try:
        again = dsfs("mount", source, mount.mountpoint, f"--cache-dir={tmp_path / 'other'}")
        one_line_failure(again, str(mount.mountpoint), "somebody else")
        with open(mount.root / "a.txt", "rb") as held:
            one_line_failure(dsfs("unmount", mount.mountpoint), "in use by", f"(pid {os.getpid()})", "--lazy")
            assert held.read() == b"first"
    finally:
        os.rename(tmp_path / "not known here", known)


def test_the_longest_name(mounts: Mounts, source: Path, tmp_path: Path) -> None:
    name = "n" * 253
    manifest = write_manifests(tmp_path / "m.yaml", dataset(name, source), dataset("short", source))
    mount = mounts.mount("-f", manifest)
    with open(mount.mountpoint / "default" / name / "a.txt", "rb") as held:
        mount.kill_server()
        assert held.read() == b"first"
    assert (mount.mountpoint / "default/short/a.txt").read_bytes() == b"first"


def test_a_port_that_the_system_chooses(mounts: Mounts, source: Path) -> None:
    place, cache = mounts.place()
    mounts.adopt(place, cache)
    assert dsfs("mount", source, place, f"--cache-dir={cache}", f"--http={HOST}:0").returncode == 0
    host, port = status(place)["http"].split(":")
    assert host == HOST
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as answer:
        assert b"dsfs_dataset_info" in answer.read()


def test_all_addresses(mounts: Mounts, source: Path) -> None:
    place, cache = mounts.place()
    mounts.adopt(place, cache)
    assert dsfs("mount", source, place, f"--cache-dir={cache}", "--http=:0").returncode == 0
    host, _colon, port = status(place)["http"].rpartition(":")
    assert host == ""
    for address in (HOST, "[::1]"):
        with urllib.request.urlopen(f"http://{address}:{port}/livez", timeout=10) as answer:
            assert json.load(answer) == {"alive": True}
    other = mounts.place()
    for taken in (f":{port}", f"0.0.0.0:{port}"):
        one_line_failure(dsfs("mount", source, other[0], f"--cache-dir={other[1]}", f"--http={taken}"), "in use")


def test_a_source_is_shown_as_it_was_given(mounts: Mounts, tmp_path: Path) -> None:
    options = {"endpoint": f"http://{HOST}:{free_ports(1)[0]}", "region": "us-east-1", "anonymous": "True"}
    manifest = dataset("data", "s3://bucket/prefix", type="S3")
    manifest["spec"]["source"]["options"] = options
    mount = mounts.mount("-f", write_manifests(tmp_path / "m.yaml", manifest))
    mount.expect_log("listing failed")
    assert mount.dataset()["source"] == "s3://bucket/prefix"


def test_two_that_are_started_at_once(mounts: Mounts, source: Path) -> None:
    """One is mounted, and is whole; the others are told."""
    place, cache = mounts.place()
    mounts.adopt(place, cache)
    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(lambda _: dsfs("mount", source, place, f"--cache-dir={cache}"), range(4)))
        failed = [each for each in done if each.returncode != 0]
        assert len(failed) == 3
        for each in failed:
            one_line_failure(each, str(place))
        assert (place / "a.txt").read_bytes() == b"first"
        assert status(place)["healthy"]
        assert dsfs("restart", place).returncode == 0
        assert (place / "a.txt").read_bytes() == b"first"
        assert dsfs("unmount", place).returncode == 0
    assert not list(runtime_dir_of(place).parent.glob(f"{runtime_dir_of(place).name}*"))


def test_what_would_lie_in_itself(source: Path, tmp_path: Path) -> None:
    place = source / "mnt"
    place.mkdir()
    one_line_failure(dsfs("mount", source, place, f"--cache-dir={tmp_path}/cache"), str(place), "mount elsewhere")
    wrong_usage(dsfs("mount", tmp_path / "other", place, f"--cache-dir={place}/cache"), "--cache-dir")
    wrong_usage(dsfs("mount", tmp_path / "other", place, f"--shared-cache={place}"), "--shared-cache")
    link = tmp_path / "link"
    link.symlink_to(source)
    one_line_failure(dsfs("mount", link, link / "mnt", f"--cache-dir={tmp_path}/cache"), str(place), "mount elsewhere")
    wrong_usage(dsfs("mount", tmp_path / "other", place, f"--cache-dir={link}/mnt/cache"), "--cache-dir")
    assert os.listdir(place) == []


def test_addresses_that_cannot_be_had(mounts: Mounts, source: Path) -> None:
    place, cache = mounts.place()
    argv = ("mount", source, place, f"--cache-dir={cache}")
    one_line_failure(dsfs(*argv, "--http=nosuch.invalid:9100"), "nosuch.invalid:9100", "not known")
    with socket.create_server((HOST, 0)) as taken:
        one_line_failure(dsfs(*argv, f"--http={HOST}:{taken.getsockname()[1]}"), "in use")


def test_a_port_that_another_program_took_keeps_no_server_from_starting(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source)
    mount.expect_log("nobody can look at metrics")
    assert mount.http is not None
    keeper = mount.keeper_pid
    os.kill(keeper, signal.SIGSTOP)  # or the next server may be faster
    mount.kill_server()
    with take(int(mount.http.partition(":")[2])):
        os.kill(keeper, signal.SIGCONT)
        eventually(lambda: "nobody can look at metrics" in mount.log(), 20, "the next server says so")
        assert mount.server_pid
        assert (mount.root / "a.txt").read_bytes() == b"first"
    eventually(lambda: answers(mount), 20, "it listens once the port is free")


def take(port: int) -> socket.socket:
    """A port that a process has which is just ending, before another asks for it."""
    deadline_s = time.monotonic() + 10
    while True:
        try:
            return socket.create_server((HOST, port))
        except OSError:
            assert time.monotonic() < deadline_s


def answers(mount: Mount) -> bool:
    try:
        return bool(mount.metrics())
    except OSError:
        return False
