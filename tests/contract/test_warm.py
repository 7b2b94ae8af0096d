"""``dsfs warm``: everything comes once, what is there is not asked for again, and whatever goes wrong is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import one_line_failure, wrong_usage
from tests.manifests import dataset, write_manifests
from tests.mounts import DSFS, Mount, Mounts, clean_environment, dsfs, eventually
from tests.pages import drop_pages
from tests.servers import hostile as web
from tests.servers.web_tree import gets, put_tree, some_files

WARM_SCHEMA = [
    *("id", "dataset", "glob", "state", "message", "files", "bytes", "files_done", "bytes_done", "fetched_bytes"),
    *("failed_files", "errors", "seconds"),
]


@pytest.fixture
def server() -> Iterator[web.Hostile]:
    with web.hostile() as running:
        yield running


def mount_tree(mounts: Mounts, uri: str, *flags: str, **spec: Any) -> Mount:
    manifest = write_manifests(mounts.directory / "m.yaml", dataset("data", uri, "team", type="HTTP", **spec))
    return mounts.mount("-f", manifest, *flags, dataset="team/data")


def warm(mount: Mount, *argv: str) -> dict[str, Any]:
    done = dsfs("warm", *argv, "--json", "-m", mount.mountpoint)
    assert done.returncode == 0, (done.stdout, done.stderr)
    job = json.loads(done.stdout)
    assert list(job) == WARM_SCHEMA
    return dict(job)


def test_all_of_it_comes_once_and_is_not_asked_for_again(mounts: Mounts, server: web.Hostile) -> None:
    files = {**some_files(60), "large": os.urandom(9_000_000), "empty": b""}
    mount = mount_tree(mounts, put_tree(server, files))
    first = warm(mount, "team/data")
    size = sum(map(len, files.values()))
    assert (first["state"], first["files"], first["bytes"]) == ("done", len(files), size)
    assert (first["files_done"], first["bytes_done"], first["fetched_bytes"]) == (len(files), size, size)
    asked = gets(server)
    assert asked == {**dict.fromkeys(files, 1), "large": 2}  # in runs of 8 MiB; a HEAD that says 0 is not believed
    assert mount.dataset()["cached_bytes"] == size
    again = warm(mount, "data")
    assert (again["state"], again["files_done"], again["fetched_bytes"]) == ("done", len(files), 0)
    for path, data in files.items():
        assert (mount.root / path).read_bytes() == data
    assert gets(server) == asked


def test_a_server_without_ranges_sends_it_once(mounts: Mounts, server: web.Hostile) -> None:
    files = {"large": os.urandom(9_000_000), "small": b"1"}
    uri = put_tree(server, files)
    server.behave("/data/large", web.whole_for_range)
    mount = mount_tree(mounts, uri)
    assert warm(mount, "team/data")["fetched_bytes"] == 9_000_001
    assert mount.dataset()["cached_bytes"] == 9_000_001
    assert (mount.root / "large").read_bytes() == files["large"]
    assert gets(server)["large"] <= 2  # the first asks for a range


def test_what_was_read_before_is_not_fetched(mounts: Mounts, server: web.Hostile) -> None:
    files = some_files(20)
    mount = mount_tree(mounts, put_tree(server, files))
    assert (mount.root / "d/f003").read_bytes() == files["d/f003"]
    done = dsfs("warm", "team/data", "-m", mount.mountpoint)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "team/data: 20 files, 390.6 KiB are warm; 19.5 KiB were already\n"
    assert done.stderr == ""
    assert set(gets(server).values()) == {1}


def test_a_glob_names_what_comes(mounts: Mounts, server: web.Hostile) -> None:
    mount = mount_tree(mounts, put_tree(server, {**some_files(12), "other": b"1"}))
    assert warm(mount, "team/data/d/f00*")["files"] == 10
    assert set(gets(server)) == {f"d/f00{number}" for number in range(10)}
    assert warm(mount, "team/data/d")["fetched_bytes"] == 2 * 20_000
    for flags in ((), ("--pin",)):
        done = dsfs("warm", "team/data/none*", *flags, "-m", mount.mountpoint)
        one_line_failure(done, "team/data", "no file matches none*")
    assert pinned(mount) == []
    one_line_failure(dsfs("warm", "team/nosuch", "-m", mount.mountpoint), "team/nosuch")


def test_files_that_fail_are_told_and_the_others_come(mounts: Mounts, server: web.Hostile) -> None:
    files = some_files(30)
    uri = put_tree(server, files)
    for number in range(7):
        server.behave(f"/data/d/f00{number}", web.status(403))
    mount = mount_tree(mounts, uri)
    mount.expect_log("fetch failed")
    line = one_line_failure(
        dsfs("warm", "team/data", "-m", mount.mountpoint), "team/data", "7 of 30 files", "403", "and 2 more"
    )
    assert "d/f00" in line
    assert "warm-up failed: 7 of 30 files" in mount.dataset()["message"]
    assert mount.dataset()["cached_bytes"] == 23 * 20_000
    retry = warm(mount, "team/data")  # they can be read by now
    assert (retry["state"], retry["fetched_bytes"]) == ("done", 7 * 20_000)
    assert mount.dataset()["message"] == ""


def test_more_than_fits_is_refused_with_the_numbers(mounts: Mounts, server: web.Hostile) -> None:
    uri = put_tree(server, {"large": os.urandom(9_000_000), "small": b"1"})
    mount = mount_tree(mounts, uri, "--cache-size=8MiB", cache={"quota": "4KiB"})
    line = one_line_failure(dsfs("warm", "data", "-m", mount.mountpoint), "8.6 MiB", "do not fit", "8.0 MiB")
    assert "--cache-size" in line
    one_line_failure(dsfs("warm", "data/small", "-m", mount.mountpoint), "quota", "4.0 KiB", "8.0 KiB")
    assert not gets(server)


@pytest.mark.parametrize("sizes", [(20, 100_000), (1, 2_000_000)], ids=["small", "large"])
def test_a_full_cache_makes_room_for_what_is_warmed(
    mounts: Mounts, server: web.Hostile, sizes: tuple[int, int]
) -> None:
    """Though what is in it was used more, and nobody has used this yet."""
    uri = put_tree(server, some_files(60, 100_000, "used") | some_files(*sizes, "wanted"))
    mount = mount_tree(mounts, uri, "--cache-size=8MiB")
    mount.wait_phase("READY")
    for _ in range(3):
        for path in sorted((mount.root / "used").iterdir()):
            drop_pages(path)
            path.read_bytes()
    assert warm(mount, "data/wanted")["fetched_bytes"] == sizes[0] * sizes[1]
    for path in sorted((mount.root / "used").iterdir()):
        path.read_bytes()
    before = gets(server)
    for path in sorted((mount.root / "wanted").iterdir()):
        path.read_bytes()
    assert gets(server) == before


def test_a_higher_priority_keeps_its_room_until_it_is_deleted(mounts: Mounts, server: web.Hostile) -> None:
    used, wanted = some_files(65, 100_000), some_files(20, 100_000)
    manifest = write_manifests(
        mounts.directory / "m.yaml",
        dataset("used", put_tree(server, used, "/used/"), "team", type="HTTP", cache={"priority": 1}),
        dataset("wanted", put_tree(server, wanted), "team", type="HTTP"),
    )
    mount = mounts.mount("-f", manifest, "--cache-size=8MiB", dataset="team/wanted")
    assert warm(mount, "team/used")["fetched_bytes"] == 65 * 100_000
    done = dsfs("warm", "team/wanted", "-m", mount.mountpoint)
    assert done.returncode == 1
    assert "were evicted again" in done.stderr or "could not be kept" in done.stderr
    assert set(gets(server).values()) == {1}, "nothing pushes itself out again and again"
    assert gets(server, "/used/") == dict.fromkeys(used, 1)
    # The window of so small a cache has no room for what is in flight, and that comes from those who are there.
    assert mount.dataset("used")["cached_bytes"] >= 40 * 100_000
    assert dsfs("dataset", "delete", "team/used", "-m", mount.mountpoint).returncode == 0
    assert warm(mount, "team/wanted")["files_done"] == 20


def test_what_a_reader_brings_meanwhile_stays_too(mounts: Mounts, server: web.Hostile) -> None:
    uri = put_tree(server, some_files(60, 100_000, "used") | some_files(20, 100_000, "wanted"))
    mount = mount_tree(mounts, uri, "--cache-size=8MiB")
    assert warm(mount, "data/used")["files_done"] == 60
    for name in ("f000", "f007", "f019"):
        assert len((mount.root / "wanted" / name).read_bytes()) == 100_000
    assert warm(mount, "data/wanted")["files_done"] == 20


def test_what_its_quota_has_no_room_for_is_refused(mounts: Mounts, server: web.Hostile) -> None:
    uri = put_tree(server, some_files(10, 100_000, "train") | some_files(10, 100_000, "val"))
    mount = mount_tree(mounts, uri, cache={"quota": "1500KiB"})
    assert warm(mount, "data/train")["files_done"] == 10
    for flags in ((), ("--pin",), ("--pin", "--no-wait")):
        done = dsfs("warm", "data/val", *flags, "-m", mount.mountpoint)
        line = one_line_failure(done, "team/data", "do not fit", "quota", "976.6 KiB")
        assert "dsfs evict" in line
    assert pinned(mount) == []
    assert warm(mount, "data/train")["files_done"] == 10, "what is here takes no more room"
    assert set(gets(server)) == {f"train/f{number:03d}" for number in range(10)}
    assert dsfs("evict", "data/train", "-m", mount.mountpoint).returncode == 0
    assert warm(mount, "data/val")["files_done"] == 10


def test_what_pins_leave_no_room_for_is_refused(mounts: Mounts, server: web.Hostile) -> None:
    uri = put_tree(server, some_files(50, 100_000, "held") | some_files(40, 100_000, "wanted"))
    mount = mount_tree(mounts, uri, "--cache-size=8MiB")
    assert dsfs("warm", "data/held", "--pin", "-m", mount.mountpoint).returncode == 0
    one_line_failure(dsfs("warm", "data/wanted", "-m", mount.mountpoint), "do not fit", "pinned", "dsfs unpin")
    assert set(gets(server)) == {f"held/f{number:03d}" for number in range(50)}
    assert warm(mount, "data/held")["files_done"] == 50


def test_wrong_flags() -> None:
    wrong_usage(dsfs("warm", "data", "--rate", "fast"), "--rate fast", "is not a size")
    wrong_usage(dsfs("warm"), "DATASET")


def pinned(mount: Mount) -> list[str]:
    done = dsfs("pin", "--list", "--json", "-m", mount.mountpoint)
    return [each["selector"] for each in json.loads(done.stdout)]


def start_warm(mount: Mount, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [DSFS, "warm", *argv, "-m", str(mount.mountpoint)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )


def test_being_interrupted_cancels_and_keeps_what_came(mounts: Mounts, server: web.Hostile) -> None:
    files = some_files(60)
    uri = put_tree(server, files)
    gates = [server.gate(f"/data/{path}", 10) for path in sorted(files)[10:]]
    mount = mount_tree(mounts, uri)
    try:
        with start_warm(mount, "data") as process:
            eventually(lambda: any(gate.reached.is_set() for gate in gates), 60, "it fetches")
            eventually(lambda: "warming: " in mount.dataset()["message"], 60, "status shows it")
            process.send_signal(signal.SIGINT)
            out, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert (out, said.splitlines()) == ("", ["dsfs: warm-up of team/data cancelled; what came stays"])
    finally:
        for gate in gates:
            gate.open()
    assert mount.dataset()["message"] == ""
    # what had begun comes to its end; nothing new begins
    begun = eventually(lambda: mount.dataset()["cached_bytes"] // 20_000 == len(gets(server)), 60, "it is quiet")
    assert begun
    assert len(gets(server)) < len(files)
    assert warm(mount, "data")["state"] == "done"
    assert set(gets(server).values()) == {1}


def test_being_interrupted_before_the_server_has_answered_cancels_too(mounts: Mounts, server: web.Hostile) -> None:
    files = some_files(4)
    uri = put_tree(server, files)
    gates = [server.gate(f"/data/{path}", 10) for path in files]
    mount = mount_tree(mounts, uri)
    stopped = mount.server_pid
    os.kill(stopped, signal.SIGSTOP)
    try:
        with start_warm(mount, "data") as process:
            eventually(lambda: signal.SIGINT in blocked_signals(process.pid), 60, "it asks")
            process.send_signal(signal.SIGINT)
            os.kill(stopped, signal.SIGCONT)
            out, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert (out, said.splitlines()) == ("", ["dsfs: warm-up of team/data cancelled; what came stays"])
    finally:
        os.kill(stopped, signal.SIGCONT)
        for gate in gates:
            gate.open()
    assert mount.dataset()["message"] == ""


def blocked_signals(pid: int) -> set[int]:
    """Which a process holds back at this moment (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
    return {number for number in range(1, 65) if mask >> number - 1 & 1}


def test_it_goes_on_in_the_next_server(mounts: Mounts, server: web.Hostile) -> None:
    """One that somebody waits for, and one that nobody does."""
    files = {**some_files(30, directory="a"), **some_files(30, directory="b")}
    uri = put_tree(server, files)
    gates = [server.gate("/data/a/f029", 10), server.gate("/data/b/f029", 10)]
    mount = mount_tree(mounts, uri)
    with start_warm(mount, "data/a", "--json") as waiting:
        asked = dsfs("warm", "data/b", "--no-wait", "-m", mount.mountpoint)
        assert asked.returncode == 0, asked.stderr
        assert asked.stdout.startswith("warming team/data")
        for gate in gates:
            assert gate.reached.wait(60)
        mount.kill_server_and_courier()
        for gate in gates:
            gate.open()
        out, said = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, (out, said)
    assert json.loads(out)["state"] == "done"
    eventually(lambda: gets(server)["b/f029"] == 2, 20, "the other one goes on too")
    for path, data in files.items():
        assert (mount.root / path).read_bytes() == data
    asked_for = gets(server)
    assert {path: count for path, count in asked_for.items() if count > 2} == {}
    assert sum(asked_for.values()) <= len(files) + 32, "what was there already was not fetched again"


def test_a_resync_on_the_way_is_followed(mounts: Mounts, server: web.Hostile) -> None:
    files = some_files(20)
    uri = put_tree(server, files)
    gate = server.gate("/data/d/f019", 10)
    mount = mount_tree(mounts, uri)
    with start_warm(mount, "data", "--json") as process:
        assert gate.reached.wait(60)
        put_tree(server, {**files, "d/new": b"new"})
        assert dsfs("dataset", "resync", "data", "-m", mount.mountpoint).returncode == 0
        gate.open()
        out, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert (json.loads(out)["state"], json.loads(out)["files"]) == ("done", 21)
    assert gets(server)["d/new"] == 1


def test_readers_go_first(mounts: Mounts, server: web.Hostile) -> None:
    """Every slot that warm-up may have is held up, and a reader gets its file all the same."""
    files = some_files(80)
    uri = put_tree(server, {**files, "z": b"wanted now"})
    gates = [server.gate(f"/data/{path}", 10) for path in files]
    mount = mount_tree(mounts, uri)
    try:
        assert dsfs("warm", "data", "--no-wait", "-m", mount.mountpoint).returncode == 0
        eventually(lambda: sum(gate.reached.is_set() for gate in gates) >= 8, 60, "warm-up has its slots")
        assert (mount.root / "z").read_bytes() == b"wanted now"
        assert not all(gate.reached.is_set() for gate in gates)
    finally:
        for gate in gates:
            gate.open()
    eventually(lambda: mount.dataset()["cached_bytes"] == 80 * 20_000 + 10, 20, "it goes on to its end")


def test_pinning_that_is_refused_warms_nothing(mounts: Mounts, server: web.Hostile, tmp_path: Path) -> None:
    mount = mount_tree(mounts, put_tree(server, {"large": os.urandom(9_000_000)}), "--cache-size=8MiB")
    one_line_failure(dsfs("warm", "data", "--pin", "-m", mount.mountpoint))
    assert not gets(server)
    assert pinned(mount) == []
