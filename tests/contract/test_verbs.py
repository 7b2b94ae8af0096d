"""What the verbs print: ``dsfs status --json`` and the others, exactly as DESIGN section 7 has them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import flip_byte, one_line_failure
from tests.manifests import dataset, write_manifests
from tests.mounts import DSFS, Mounts, clean_environment, dsfs, eventually, is_mounted, leftovers, runtime_dir_of
from tests.pages import drop_pages
from tests.servers import hostile as web

MOUNT_SCHEMA = {
    "mountpoint": str,
    "session": str,
    "keeper_pid": int,
    "server_pid": int,
    "http": (str, type(None)),
    "cache_dir": str,
    "cache_size": int,
    "cache_used": int,
    "healthy": bool,
    "datasets": list,
}
DATASET_SCHEMA = {
    "namespace": str,
    "name": str,
    "source": str,
    "revision": str,
    "phase": str,
    "message": str,
    "files": int,
    "bytes": int,
    "cached_bytes": int,
    "pinned_bytes": int,
    "skipped": int,
    "read_path": str,
}


OBJECT_SPACE = 8192
"""An object takes whole pages, and a map: what ``cached_bytes`` may say over its bytes."""


def check_schema(found: dict[str, Any], schema: dict[str, Any]) -> None:
    assert list(found) == list(schema)
    for key, kind in schema.items():
        assert isinstance(found[key], kind), (key, found[key])
        assert kind is bool or not isinstance(found[key], bool), (key, found[key])


def printed(*argv: str | Path) -> Any:
    done = dsfs(*argv)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_status(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source)
    mount.wait_phase("READY")
    (mount.root / "a.txt").read_bytes()
    answer = printed("status", mount.mountpoint, "--json")
    assert list(answer) == ["mounts"]
    (status,) = answer["mounts"]
    check_schema(status, MOUNT_SCHEMA)
    (only,) = status["datasets"]
    check_schema(only, DATASET_SCHEMA)
    assert status["mountpoint"] == str(mount.mountpoint)
    assert status["session"] == "direct"
    assert status["http"] == mount.http
    assert status["cache_dir"] == str(mount.cache_dir)
    assert status["healthy"] is True
    assert 0 < status["cache_used"] < status["cache_size"]
    for key in ("keeper_pid", "server_pid"):
        assert os.path.exists(f"/proc/{status[key]}")
    assert only["source"] == str(source)
    assert (only["namespace"], only["name"], only["phase"], only["message"]) == ("default", "source", "READY", "")
    assert (only["files"], only["bytes"]) == (2, 5 + 256 * 20_000)
    assert 5 <= only["cached_bytes"] <= 5 + OBJECT_SPACE
    assert (only["pinned_bytes"], only["skipped"]) == (0, 0)
    assert only["read_path"] in ("passthrough", "openless", "daemon")
    assert mount.mountpoint in [Path(each["mountpoint"]) for each in printed("status", "--json")["mounts"]]


def test_status_for_people(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source)
    mount.wait_phase("READY")
    done = dsfs("status", mount.mountpoint)
    assert done.returncode == 0
    assert "default/source" in done.stdout
    assert "READY" in done.stdout
    assert done.stderr == ""


def test_mounted_within_about_a_second(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source)
    assert (mount.root / "a.txt").read_bytes() == b"first"
    assert mount.mount_seconds < 60  # 0.9 s on two idle cores


def test_dataset_list_and_show(mounts: Mounts, source: Path, tmp_path: Path) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "keys", "namespace": "team"},
        "stringData": {"username": "someone", "password": "fake-passw0rd-1"},
    }
    manifest = write_manifests(
        tmp_path / "m.yaml",
        dataset("one", source, "team", secretRef="keys", share=True),
        dataset("two", source),
        secret,
    )
    mount = mounts.mount("-f", manifest)
    where = f"-m{mount.mountpoint}"
    listed = printed("dataset", "list", where, "--json")
    assert sorted((each["namespace"], each["name"]) for each in listed) == [("default", "two"), ("team", "one")]
    for each in listed:
        check_schema(each, DATASET_SCHEMA)
    text = dsfs("dataset", "show", "team/one", where, "--json").stdout
    shown = json.loads(text)
    assert shown["manifest"]["spec"]["source"]["uri"] == str(source)
    assert shown["manifest"]["spec"]["share"] is True
    (tmp_path / "shown.json").write_text(json.dumps(shown["manifest"]))
    assert dsfs("dataset", "apply", "-f", tmp_path / "shown.json", where).stdout == "team/one unchanged\n"
    check_schema({key: value for key, value in shown.items() if key != "manifest"}, DATASET_SCHEMA)
    assert printed("dataset", "show", "two", where, "--json")["name"] == "two"
    assert "team/one" in dsfs("dataset", "list", where).stdout
    everything = text + dsfs("dataset", "show", "team/one", where).stdout + json.dumps(mount.status()) + mount.log()
    assert "fake-passw0rd-1" not in everything


def test_evict(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source)
    data = (source / "sub/b.bin").read_bytes()
    assert (mount.root / "sub/b.bin").read_bytes() == data
    assert (mount.root / "a.txt").read_bytes() == b"first"
    eventually(lambda: mount.dataset()["cached_bytes"] == len(data) + 5, 10, "both files are cached")
    where = f"-m{mount.mountpoint}"
    answer = printed("evict", "source/sub", where, "--json")
    assert list(answer) == ["evicted_bytes"]
    assert answer["evicted_bytes"] >= len(data)
    assert 5 <= mount.dataset()["cached_bytes"] <= 5 + OBJECT_SPACE
    assert printed("evict", "default/source/none*", where, "--json")["evicted_bytes"] == 0
    assert printed("evict", "default/source", where, "--json")["evicted_bytes"] > 0
    assert mount.dataset()["cached_bytes"] == 0
    assert (mount.root / "sub/b.bin").read_bytes() == data
    assert dsfs("evict", "source", where).returncode == 0


def test_a_file_that_is_open_survives_its_eviction(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source)
    data = (source / "sub/b.bin").read_bytes()
    fd = os.open(mount.root / "sub/b.bin", os.O_RDONLY)
    try:
        assert os.pread(fd, 1000, 0) == data[:1000]
        printed("evict", "source", f"-m{mount.mountpoint}", "--json")
        drop_pages(fd)
        for offset in range(0, len(data), 1_000_000):
            assert os.pread(fd, 1_000_000, offset) == data[offset : offset + 1_000_000]
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", ["openless", "daemon", "pyfuse3"])
def test_what_verify_finds_bad_is_not_in_the_kernel_either(
    mounts: Mounts, source: Path, tmp_path: Path, path: str
) -> None:
    session, spec = ("pyfuse3", {}) if path == "pyfuse3" else ("direct", {"readPath": path})
    manifest = write_manifests(tmp_path / "m.yaml", dataset("data", source, **spec))
    mount = mounts.mount("-f", manifest, session=session, dataset="default/data")
    mount.expect_log("corrupt block dropped")
    file, data = mount.root / "sub/b.bin", (source / "sub/b.bin").read_bytes()
    assert file.read_bytes() == data
    eventually(lambda: mount.dataset()["cached_bytes"] == len(data), 10, "it is cached")
    flip_byte(mount.cache_dir, len(data))

    def is_bad() -> bool:
        drop_pages(file)
        return file.read_bytes() != data

    eventually(is_bad, 10, "it is read from the disk, not from what was just fetched; nobody has looked yet")
    done = dsfs("verify", f"--cache-dir={mount.cache_dir}", "--json")
    assert (done.returncode, json.loads(done.stdout)["bad"]) == (1, 1)
    assert len(done.stderr.splitlines()) == 1
    assert "bad blocks" in done.stderr
    assert file.read_bytes() == data


def test_verify(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source)
    data = (source / "sub/b.bin").read_bytes()
    assert (mount.root / "sub/b.bin").read_bytes() == data
    eventually(lambda: mount.dataset()["cached_bytes"] == len(data), 10, "it is cached")
    cache = f"--cache-dir={mount.cache_dir}"
    found = printed("verify", cache, "--json")
    assert found == {"objects": 1, "blocks": 5, "bytes": len(data), "bad": 0}
    # mounted
    flip_byte(mount.cache_dir, len(data))
    mount.expect_log("corrupt block dropped")
    done = dsfs("verify", cache, "--json")
    assert done.returncode == 1, done
    assert json.loads(done.stdout)["bad"] == 1
    assert dsfs("verify", cache).returncode == 0
    drop_pages(mount.root / "sub/b.bin")
    assert (mount.root / "sub/b.bin").read_bytes() == data
    eventually(lambda: mount.dataset()["cached_bytes"] == len(data), 10, "it is cached again")
    # and not
    assert mount.unmount().returncode == 0
    assert dsfs("verify", cache).returncode == 0
    flip_byte(mount.cache_dir, len(data))
    done = dsfs("verify", cache)
    assert done.returncode == 1
    assert "1 bad" in done.stdout
    assert "Traceback" not in done.stderr
    assert dsfs("verify", cache).returncode == 0
    # and what was dropped is fetched anew
    again = mounts.mount(source, cache_dir=mount.cache_dir)
    assert (again.root / "sub/b.bin").read_bytes() == data


def test_doctor() -> None:
    done = dsfs("doctor")
    assert done.returncode == 0
    assert "/dev/fuse" in done.stdout
    checks = printed("doctor", "--json")["checks"]
    assert {"name", "ok", "result", "remedy", "fatal"} == set(checks[0])


@pytest.mark.parametrize("session", ["direct", "pyfuse3"])
def test_unmount_is_refused_while_somebody_uses_it(mounts: Mounts, source: Path, session: str) -> None:
    mount = mounts.mount(source, session=session)
    argv = [sys.executable, "-c", "import sys; f = open(sys.argv[1]); print(1, flush=True); sys.stdin.read()"]
    with subprocess.Popen([*argv, mount.root / "a.txt"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        assert user.stdout.readline()
        line = one_line_failure(dsfs("unmount", mount.mountpoint), str(mount.mountpoint), f"pid {user.pid}")
        assert "in use" in line
        assert (mount.root / "a.txt").read_bytes() == b"first"
        user.communicate()
    assert mount.unmount().returncode == 0
    assert not is_mounted(mount.mountpoint)
    assert leftovers(mount.mountpoint) == []
    assert list(mount.mountpoint.iterdir()) == []


@pytest.mark.parametrize("session", ["direct", "pyfuse3"])
def test_lazy_unmount_while_somebody_uses_it(mounts: Mounts, source: Path, session: str) -> None:
    mount = mounts.mount(source, session=session)
    held = os.open(mount.root / "sub/b.bin", os.O_RDONLY)
    try:
        assert os.pread(held, 10, 0) == bytes(range(10))
        done = dsfs("unmount", "--lazy", mount.mountpoint)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert not is_mounted(mount.mountpoint)
        drop_pages(held)
        with pytest.raises(OSError, match="not connected"):
            os.pread(held, 10, 1_000_000)
    finally:
        with contextlib.suppress(OSError):  # through pyfuse3 that is asked for too
            os.close(held)
    assert leftovers(mount.mountpoint) == []


@pytest.mark.parametrize("session", ["direct", "pyfuse3"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_foreground(mounts: Mounts, source: Path, session: str, number: signal.Signals) -> None:
    mountpoint, cache = mounts.place()
    mounts.adopt(mountpoint, cache)
    argv = [DSFS, "mount", source, mountpoint, f"--cache-dir={cache}", f"--session={session}", "--foreground"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=clean_environment()) as process:
        assert process.stderr is not None
        eventually(lambda: "mounted at" in process.stderr.readline(), 20, "it says so")
        assert (mountpoint / "a.txt").read_bytes() == b"first"
        process.send_signal(number)
        ready = select.select([os.pidfd_open(process.pid)], [], [], 20)[0]
        os.close(ready[0]) if ready else process.kill()
        rest = process.stderr.read()
        assert ready, "it did not end"
    assert process.returncode == 0, rest
    assert "Traceback" not in rest
    assert not is_mounted(mountpoint)
    assert leftovers(mountpoint) == []


@pytest.mark.usefixtures("as_in_a_terminal")
def test_foreground_ends_with_its_terminal(mounts: Mounts, source: Path) -> None:
    mountpoint, cache = mounts.place()
    mounts.adopt(mountpoint, cache)
    terminal, ours = os.openpty()
    argv = ["setsid", "--ctty", DSFS, "mount", source, mountpoint, f"--cache-dir={cache}", "--foreground"]
    with subprocess.Popen(argv, stdin=ours, stdout=ours, stderr=ours, env=clean_environment()) as process:
        os.close(ours)
        try:
            said, deadline = b"", time.monotonic() + 20
            while b"mounted at" not in said:
                assert select.select([terminal], [], [], max(deadline - time.monotonic(), 0))[0], said
                said += os.read(terminal, 4096)
            assert (mountpoint / "a.txt").read_bytes() == b"first"
            os.close(terminal)
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert not is_mounted(mountpoint)
    assert leftovers(mountpoint) == []


@pytest.mark.parametrize("session", ["direct", "pyfuse3"])
def test_foreground_that_is_killed_takes_its_mount_along(mounts: Mounts, source: Path, session: str) -> None:
    """As by a supervisor that kills its process group: the keeper has a group of its own."""
    mountpoint, cache = mounts.place()
    mounts.adopt(mountpoint, cache)
    argv = [DSFS, "mount", source, mountpoint, f"--cache-dir={cache}", f"--session={session}", "--foreground"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=clean_environment()) as process:
        try:
            assert process.stderr is not None
            eventually(lambda: "mounted at" in process.stderr.readline(), 20, "it says so")
            assert (mountpoint / "a.txt").read_bytes() == b"first"
        finally:
            process.kill()
    eventually(lambda: not is_mounted(mountpoint), 20, "it is unmounted")
    runtime_dir = f"runtime directory {runtime_dir_of(mountpoint)}"  # nobody is there to remove it
    eventually(lambda: leftovers(mountpoint) == [runtime_dir], 20, "keeper and server have ended")


@pytest.mark.usefixtures("as_in_a_terminal")
@pytest.mark.parametrize(
    ("number", "flags"),
    [
        (signal.SIGINT, []),
        (signal.SIGTERM, []),
        (signal.SIGHUP, ["--foreground"]),
        (signal.SIGQUIT, ["--foreground"]),
    ],
)
def test_a_mount_that_is_given_up_was_never_there(mounts: Mounts, number: signal.Signals, flags: list[str]) -> None:
    """By Ctrl-C or timeout(1), or with the terminal that it was to stay in, while the origin says nothing."""
    with web.hostile() as server:
        server.always("/data/", web.silence)
        mountpoint, cache = mounts.place()
        mounts.adopt(mountpoint, cache)
        argv = [DSFS, "mount", f"{server.url}data/", mountpoint, f"--cache-dir={cache}", *flags]
        with subprocess.Popen(argv, stderr=subprocess.PIPE, env=clean_environment()) as process:
            try:
                eventually(lambda: server.requests["/data/"] > 0, 20, "it waits for the origin")
                process.send_signal(number)
                process.communicate(timeout=20)
            finally:
                process.kill()
        assert process.returncode == 130
    shown = json.loads(dsfs("status", "--json").stdout)["mounts"]
    assert str(mountpoint) not in [each["mountpoint"] for each in shown]
    assert not is_mounted(mountpoint)


def test_status_does_not_enter_a_mount_that_hangs(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source)
    pid = mount.status()["server_pid"]
    keeper = mount.keeper_pid
    os.kill(keeper, signal.SIGSTOP)  # so that it starts no other
    os.kill(pid, signal.SIGKILL)
    try:
        started = time.monotonic()
        status = mount.status()
        assert time.monotonic() - started < 60
        assert status["healthy"] is False
        check_schema(status, MOUNT_SCHEMA)
    finally:
        os.kill(keeper, signal.SIGCONT)
    eventually(lambda: mount.look()["healthy"], 20, "it heals")
