"""``dsfs hint`` and ``dsfs.hint``: files come in the order that was said, a bounded distance ahead of the reads."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

import dsfs as package
from daemon.hint_notes import HintNotes, Noted
from daemon.keeping.succession import STEADY_S
from dsfs.client import to_mount
from dsfs.errors import MountError
from tests.contract.conftest import one_line_failure, wrong_usage
from tests.manifests import dataset, write_manifests
from tests.mounts import Mount, Mounts, dsfs, eventually, runtime_dir_of
from tests.servers import hostile as web
from tests.servers.web_tree import assert_each_came_once, gets, put_tree, some_files

MIB = 1 << 20


@pytest.fixture
def server() -> Iterator[web.Hostile]:
    with web.hostile() as running:
        yield running


def mount_tree(mounts: Mounts, uri: str, *flags: str, session: str = "auto", **spec: Any) -> Mount:
    manifest = write_manifests(mounts.directory / "m.yaml", dataset("data", uri, "team", type="HTTP", **spec))
    return mounts.mount("-f", manifest, *flags, session=session, dataset="team/data")


def state(mount: Mount) -> dict[str, Any]:
    return to_mount(str(mount.mountpoint), 10)("GET", "/api/v1/hint/team/data", {})


def hint_id(mount: Mount) -> str | None:
    """None while a new server is on its way."""
    try:
        return str(state(mount)["id"])
    except MountError:
        return None


def quiet(mount: Mount, server: web.Hostile) -> None:
    """Until as much is ahead as may be."""

    def still() -> bool:
        found = state(mount)
        return (found["ahead_bytes"] >= 16 * MIB or found["state"] == "done") and cached(mount) == len(
            set(gets(server))
        ) * MIB

    eventually(still, 20, "as much as may be is ahead")


def cached(mount: Mount) -> int:
    size = mount.dataset()["cached_bytes"]
    assert isinstance(size, int)
    return size


@pytest.mark.parametrize("path", ["passthrough", "openless", "pyfuse3"])
def test_files_come_in_order_a_bounded_distance_ahead(mounts: Mounts, server: web.Hostile, path: str) -> None:
    files = some_files(40, MIB)
    session, spec = ("pyfuse3", {}) if path == "pyfuse3" else ("direct", {"readPath": path})
    # a quarter of the cache may be ahead
    mount = mount_tree(mounts, put_tree(server, files), "--cache-size=64MiB", session=session, **spec)
    order = list(files)
    random.Random(1).shuffle(order)
    (mounts.directory / "order").write_text("".join(f"{name}\n" for name in order))
    done = dsfs("hint", "team/data", "--order", mounts.directory / "order", "-m", mount.mountpoint)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "team/data: 40 files will be fetched ahead in this order\n"
    quiet(mount, server)
    assert sorted(gets(server)) == sorted(order[:16])
    for name in order[:8]:
        assert (mount.root / name).read_bytes() == files[name]
    eventually(lambda: set(order[:24]) <= set(gets(server)), 10, "it has heard of the last of these reads")
    quiet(mount, server)
    assert set(gets(server)) <= set(order[:26])
    # some are skipped, one is read out of order
    for name in (order[39], *order[12:30]):
        assert (mount.root / name).read_bytes() == files[name]
    quiet(mount, server)
    for name in order[30:]:
        assert (mount.root / name).read_bytes() == files[name]
    eventually(lambda: state(mount)["state"] == "done", 10, "it ends by itself")
    assert_each_came_once(mount, server)
    brought = mount.sum_of("dsfs_prefetch_bytes_total", policy="order")
    assert 30 * MIB <= brought <= 39 * MIB, "all but the stray one, and what a reader has come to first"


def test_from_python(mounts: Mounts, server: web.Hostile) -> None:
    """From a process of a training job, which names files where it sees them."""
    files = some_files(10)
    mount = mount_tree(mounts, put_tree(server, files))
    program = f"""
import sys, dsfs
assert not {{"trio", "pyfuse3", "aiohttp", "pydantic", "structlog", "http.client"}} & set(sys.modules)
root = {str(mount.root)!r}
paths = [f"{{root}}/d/f{{number:03d}}" for number in range(5)] + ["d/f005", "./d/../d/f006", "no such"]
answer = dsfs.hint("data", paths, mountpoint={str(mount.mountpoint)!r})
assert (answer["files"], answer["unknown"], answer["unknown_paths"]) == (7, 1, ["no such"]), answer
assert not {{"trio", "pyfuse3", "aiohttp", "pydantic", "structlog"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    eventually(lambda: state(mount)["state"] == "done", 10, "it ends by itself")
    assert gets(server) == {f"d/f{number:03d}": 1 for number in range(7)}
    with pytest.raises(MountError, match="no dsfs mount of this user answers there"):
        package.hint("data", [], mountpoint="/no/such/place")
    with pytest.raises(MountError, match="nosuch: no such dataset here"):
        package.hint("nosuch", [], mountpoint=str(mount.mountpoint))


def test_a_server_that_is_just_starting_is_waited_for(mounts: Mounts, server: web.Hostile) -> None:
    files = some_files(3)
    mount = mount_tree(mounts, put_tree(server, files))
    mount.wait_phase("READY")
    for _ in range(3):
        mount.kill_server()
        assert package.hint("data", files, mountpoint=str(mount.mountpoint))["files"] == 3
        eventually(lambda: mount.look()["healthy"], 60, "it is ready")
        time.sleep(STEADY_S + 0.5)  # or it failed at its start, and the next one begins from nothing


def test_a_server_that_is_just_starting_knows_all_its_datasets(mounts: Mounts, server: web.Hostile) -> None:
    """It listens before it has come to the last of them."""
    files = some_files(3)
    documents = [dataset(f"data-{number}", put_tree(server, files), "team", type="HTTP") for number in range(12)]
    mount = mounts.mount("-f", write_manifests(mounts.directory / "m.yaml", *documents), dataset="team/data-11")
    mount.kill_server()
    assert package.hint("data-11", files, mountpoint=str(mount.mountpoint))["files"] == 3
    mount.kill_server()
    assert len(to_mount(str(mount.mountpoint), 10)("GET", "/api/v1/status", {})["datasets"]) == 12


def test_what_can_be_said_and_what_not(mounts: Mounts, server: web.Hostile, tmp_path: Path) -> None:
    files = some_files(3)
    mount = mount_tree(mounts, put_tree(server, files))
    where = ["-m", str(mount.mountpoint)]
    done = dsfs("hint", "data", "--order", "-", "--json", *where, stdin=json.dumps([*files, "d", "../x"]))
    assert done.returncode == 0
    assert (json.loads(done.stdout)["files"], json.loads(done.stdout)["unknown"]) == (3, 2)
    assert done.stderr == "dsfs: team/data: 2 of 5 paths are no files there: d, ../x\n"
    done = dsfs("hint", "data", "--order=-", *where, stdin="\nd/f000\n\n")
    assert done.stdout == "team/data: 1 files will be fetched ahead in this order\n"
    one_line_failure(dsfs("hint", "data", "--order=-", *where, stdin="a\nb\n"), "2 of 2 paths", "a, b", "relative")
    one_line_failure(dsfs("hint", "data", "--order=-", *where, stdin="[1]"), "JSON list")
    one_line_failure(dsfs("hint", "data", "--order=-", *where, stdin="[x"), "JSON list")
    one_line_failure(dsfs("hint", "data", f"--order={tmp_path}/none", *where), f"{tmp_path}/none")
    one_line_failure(dsfs("hint", "other", "--order=-", *where, stdin="a"), "other")
    wrong_usage(dsfs("hint", "data"), "--order")


def test_a_newer_hint_takes_the_place_of_an_older(mounts: Mounts, server: web.Hostile) -> None:
    files = some_files(40, MIB)
    mount = mount_tree(mounts, put_tree(server, files), "--cache-size=64MiB")
    ask = to_mount(str(mount.mountpoint), 10)
    first = ask("POST", "/api/v1/hint", {"selector": "data", "paths": sorted(files)[:20], "last": False})
    quiet(mount, server)
    package.hint("data", sorted(files)[38:], mountpoint=str(mount.mountpoint))
    eventually(lambda: state(mount)["state"] == "done", 10, "it ends by itself")
    assert sorted(gets(server)) == sorted(files)[:16] + sorted(files)[38:]
    overtaken = ask("POST", "/api/v1/hint", {"selector": "data", "id": first["id"], "paths": ["d/f003"], "last": True})
    assert (overtaken["id"], overtaken["state"]) == (first["id"], "replaced")
    assert state(mount)["id"] != first["id"]
    assert mount.sum_of("dsfs_prefetch_wasted_bytes_total", policy="order") == 16 * MIB


def test_ranks_that_speak_at_once_do_not_end_each_other(mounts: Mounts, server: web.Hostile) -> None:
    """As a training job's do, each in several parts."""
    files = some_files(3)
    mount = mount_tree(mounts, put_tree(server, files))
    mount.wait_phase("READY")
    paths = ["d/f000", *(f"d/g{number}" for number in range(60_000))]
    with ThreadPoolExecutor(4) as ranks:
        told = list(ranks.map(lambda _rank: package.hint("data", paths, mountpoint=str(mount.mountpoint)), range(4)))
    assert sorted({answer["state"] for answer in told} - {"fetching", "done", "ended"}) in ([], ["replaced"])
    last = state(mount)
    assert (last["files"], last["unknown"]) == (1, 60_000), "one of them is whole"
    assert last["id"] in [answer["id"] for answer in told if answer["state"] != "replaced"]


def test_it_goes_on_when_its_origin_is_back(mounts: Mounts, server: web.Hostile) -> None:
    files = some_files(200)
    mount = mount_tree(mounts, put_tree(server, files))
    mount.wait_phase("READY")
    mount.expect_log("hint waits for the origin|fetch failed|read failed|does not answer")
    for path in files:
        server.always(f"/data/{path}", web.status(500))
    package.hint("team/data", list(files), mountpoint=str(mount.mountpoint))
    eventually(lambda: "hint waits for the origin" in mount.log(), 30, "it has given up for now")
    assert state(mount)["state"] == "fetching"
    for path in files:
        server.always(f"/data/{path}", lambda _asked, _data, answer: answer)
    eventually(lambda: state(mount)["state"] == "done", 30, "it has gone on")
    assert len(gets(server)) == len(files)
    assert state(mount)["fetched_bytes"] > 20_000 * 50


def test_a_million_paths_come_in_parts(mounts: Mounts, server: web.Hostile) -> None:
    """Well: fifty thousand, of which most are not there."""
    files = some_files(3)
    mount = mount_tree(mounts, put_tree(server, files))
    paths = ["d/f000", *(f"d/g{number}" for number in range(50_000)), "d/f002"]
    answer = package.hint("data", iter(paths), mountpoint=str(mount.mountpoint))
    assert (answer["files"], answer["unknown"]) == (2, 50_000)
    eventually(lambda: state(mount)["state"] == "done", 10, "it ends by itself")
    assert sorted(gets(server)) == ["d/f000", "d/f002"]


@pytest.mark.parametrize("end", ["restart", "crash"])
def test_the_next_server_goes_on_with_a_hint(mounts: Mounts, server: web.Hostile, end: str) -> None:
    files = some_files(40, MIB)
    mount = mount_tree(mounts, put_tree(server, files), "--cache-size=64MiB")
    order = list(files)
    random.Random(2).shuffle(order)
    package.hint("data", [*order[:38], "no such"], mountpoint=str(mount.mountpoint))
    quiet(mount, server)
    for name in order[:8]:
        assert (mount.root / name).read_bytes() == files[name]
    quiet(mount, server)
    before = state(mount)
    notes = next(runtime_dir_of(mount.mountpoint).glob("hints/*.json"))
    eventually(lambda: json.loads(notes.read_text())["position"] == before["position"], 10, "how far it is, is noted")
    if end == "restart":
        done = dsfs("restart", mount.mountpoint)
        assert done.returncode == 0, done.stderr
    else:
        mount.kill_server()
    eventually(lambda: hint_id(mount) == before["id"], 20, "the next server knows of the hint")
    after = state(mount)
    assert [after[key] for key in ("files", "unknown", "unknown_paths")] == [38, 1, ["no such"]]
    assert after["position"] >= before["position"]
    for name in order[8:38]:
        assert (mount.root / name).read_bytes() == files[name]
    eventually(lambda: state(mount)["state"] == "done", 10, "it ends by itself")
    assert set(gets(server).values()) == {1}
    assert sorted(gets(server)) == sorted(order[:38])
    package.hint("data", order[38:], mountpoint=str(mount.mountpoint))
    eventually(lambda: state(mount)["state"] == "done", 10, "it ends by itself")
    eventually(lambda: not notes.exists(), 10, "of the one before nothing is left")


def test_a_hint_that_cannot_be_read_is_said_and_removed(tmp_path: Path) -> None:
    notes = HintNotes(str(tmp_path / "hints"))
    assert notes.read() == []
    first = Noted("a", "team/data", 2, 0, (), 1, whole=False)
    notes.write(first, [7, 8])
    second = replace(first, id="b", files=3, unknown_paths=("x",))
    notes.write(second, [1, 2, 3])
    with (tmp_path / "hints/a.order").open("ab") as file:
        file.write(bytes(20))  # of a server that died while it wrote
    notes.write(replace(first, files=4, position=2, whole=True), [9, 10])
    os.utime(tmp_path / "hints/a.json", (1, 1))
    assert [(noted.id, list(inos)) for noted, inos in notes.read()] == [("b", [1, 2, 3]), ("a", [7, 8, 9, 10])]
    os.truncate(tmp_path / "hints/a.order", 31)
    (tmp_path / "hints/c.json").write_text("{")
    with structlog.testing.capture_logs() as logs:
        assert [noted for noted, _inos in notes.read()] == [second]
    assert {log["event"] for log in logs} == {"a hint of the server before cannot be read"}
    assert sorted(path.name for path in (tmp_path / "hints").iterdir()) == ["b.json", "b.order"]
    notes.remove("b")
    notes.remove("b")
    assert notes.read() == []
