"""``preheat`` of a manifest: warm without being asked, and, where that is required, not seen before."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.manifests import dataset, write_manifests
from tests.mounts import Mount, Mounts, dsfs, eventually
from tests.servers import hostile as web
from tests.servers.web_tree import gets, put_tree, some_files

SIZE = 20_000


@pytest.fixture
def server() -> Iterator[web.Hostile]:
    with web.hostile() as running:
        yield running


def document(server: web.Hostile, preheat: str, **spec: Any) -> dict[str, Any]:
    return dataset("data", f"{server.url}data/", "team", type="HTTP", preheat=preheat, **spec)


def mount_with(mounts: Mounts, server: web.Hostile, preheat: str, *flags: str, session: str = "auto") -> Mount:
    """Beside it there is a dataset that is always there."""
    other = mounts.directory / "other"
    other.mkdir()
    manifest = write_manifests(mounts.directory / "m.yaml", document(server, preheat), dataset("other", other))
    return mounts.mount("-f", manifest, *flags, session=session, dataset="team/data")


def apply(mounts: Mounts, mount: Mount, changed: dict[str, Any]) -> str:
    manifest = write_manifests(mounts.directory / "changed.yaml", changed)
    done = dsfs("dataset", "apply", "-f", manifest, "-m", mount.mountpoint)
    assert done.returncode == 0, done.stderr
    return done.stdout


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def wait_cached(mount: Mount, size: int) -> None:
    eventually(lambda: mount.dataset("data")["cached_bytes"] == size, 20, f"{size} bytes are cached")


def test_background_warms_what_is_listed_and_each_revision(mounts: Mounts, server: web.Hostile) -> None:
    files = some_files(20)
    put_tree(server, files)
    mount = mount_with(mounts, server, "background")
    assert (mount.root / "d/f000").read_bytes() == files["d/f000"]  # seen at once
    wait_cached(mount, 20 * SIZE)
    put_tree(server, {**files, "d/new": b"new"})
    assert dsfs("dataset", "resync", "team/data", "-m", mount.mountpoint).returncode == 0
    wait_cached(mount, 20 * SIZE + 3)
    assert set(gets(server).values()) == {1}
    assert (mount.root / "d/new").read_bytes() == b"new"


def test_turning_it_on_and_off_needs_no_new_mount(mounts: Mounts, server: web.Hostile) -> None:
    files = some_files(20)
    put_tree(server, files)
    mount = mount_with(mounts, server, "none")
    with open(mount.root / "d/f000", "rb") as held:
        assert apply(mounts, mount, document(server, "background")) == "team/data changed\n"
        wait_cached(mount, 20 * SIZE)
        assert apply(mounts, mount, document(server, "required")) == "team/data changed\n"
        assert held.read() == files["d/f000"]
        assert names(mount.root / "d") == [f"f{number:03d}" for number in range(20)]
    assert set(gets(server).values()) == {1}


@pytest.mark.parametrize("session", ["direct", "pyfuse3"])
def test_required_is_not_seen_before_it_is_warm(mounts: Mounts, server: web.Hostile, session: str) -> None:
    files = some_files(20)
    put_tree(server, files)
    gate = server.gate("/data/d/f007", 100)
    mount = mount_with(mounts, server, "required", session=session)
    assert gate.reached.wait(10)
    assert names(mount.mountpoint) == ["default"]
    with pytest.raises(FileNotFoundError):
        os.stat(mount.root / "d/f000")
    shown = mount.dataset("data")
    assert shown["phase"] == "PROCESSING"
    assert "not visible before it is warm; preheat: " in shown["message"]
    gate.open()
    deadline_s = time.monotonic() + 20
    while not found_if_listed(mount, "d/f000", files["d/f000"]):
        assert time.monotonic() < deadline_s
    eventually(lambda: names(mount.mountpoint) == ["default", "team"], 20, "it is seen")
    asked = gets(server)
    assert asked == dict.fromkeys(files, 1)
    for path, data in files.items():
        assert (mount.root / path).read_bytes() == data
    assert gets(server) == asked
    shown = mount.wait_phase("READY", "data")
    assert shown["message"] == ""


def found_if_listed(mount: Mount, path: str, data: bytes) -> bool:
    """Whether a file is there. What is listed is there already, and what is not there has no other error."""
    listed = names(mount.mountpoint)
    try:
        assert (mount.root / path).read_bytes() == data
    except FileNotFoundError:
        assert "team" not in listed
        return False
    return True


def test_required_stays_seen_through_a_crash_and_comes_back_hidden_before(mounts: Mounts, server: web.Hostile) -> None:
    files = some_files(20)
    put_tree(server, files)
    gate = server.gate("/data/d/f019", 100)
    mount = mount_with(mounts, server, "required")
    assert gate.reached.wait(10)
    second = server.gate("/data/d/f019", 100)
    wait_cached(mount, 19 * SIZE)
    mount.kill_server_and_courier()
    gate.open()
    assert second.reached.wait(20), "the next server goes on"
    assert names(mount.mountpoint) == ["default"]
    second.open()
    eventually(lambda: names(mount.mountpoint) == ["default", "team"], 20, "it is seen")
    mount.kill_server()
    assert (mount.root / "d/f003").read_bytes() == files["d/f003"]
    assert names(mount.mountpoint) == ["default", "team"]
    assert sum(gets(server).values()) <= 20 + 2


def test_required_shows_the_next_revision_when_that_is_warm(mounts: Mounts, server: web.Hostile) -> None:
    files = some_files(5)
    put_tree(server, files)
    mount = mount_with(mounts, server, "required")
    eventually(lambda: names(mount.mountpoint) == ["default", "team"], 20, "it is seen")
    put_tree(server, {**files, "d/new": b"new"})
    server.behave("/data/d/new", web.status(403))
    mount.expect_log("fetch failed|resync failed")
    refused = dsfs("dataset", "resync", "team/data", "-m", mount.mountpoint)
    assert refused.returncode == 1
    assert "preheat failed: 1 of 6 files failed: d/new" in refused.stderr
    assert "new" not in names(mount.root / "d")
    assert dsfs("dataset", "resync", "team/data", "-m", mount.mountpoint).returncode == 0
    assert "new" in names(mount.root / "d")
    assert gets(server) == {**dict.fromkeys(files, 1), "d/new": 2}


def test_required_that_does_not_fit_is_failed_until_it_is_not_required(mounts: Mounts, server: web.Hostile) -> None:
    put_tree(server, {"large": os.urandom(9_000_000)})
    mount = mount_with(mounts, server, "required", "--cache-size=8MiB")
    shown = mount.wait_phase("FAILED", "data")
    assert "preheat failed: 8.6 MiB in 1 files do not fit into a cache of 8.0 MiB" in shown["message"]
    assert names(mount.mountpoint) == ["default"]
    apply(mounts, mount, document(server, "none"))
    assert (mount.root / "large").read_bytes() == server.files["/data/large"]
    shown = mount.wait_phase("READY", "data")
    assert shown["message"] == ""


def test_what_cannot_stay_is_not_fetched_again_and_again(mounts: Mounts, server: web.Hostile) -> None:
    put_tree(server, some_files(55, 100_000), "/used/")
    put_tree(server, some_files(30, 100_000))
    other = mounts.directory / "other"
    other.mkdir()
    manifest = write_manifests(
        mounts.directory / "m.yaml",
        dataset("used", f"{server.url}used/", "team", type="HTTP", cache={"priority": 1}, preheat="required"),
        dataset("other", other),
    )
    mount = mounts.mount("-f", manifest, "--cache-size=8MiB", dataset="team/used")
    mount.wait_phase("READY", "used")
    apply(mounts, mount, document(server, "background"))
    eventually(lambda: "preheat failed: " in mount.dataset("data")["message"], 20, "it says that it cannot stay")
    time.sleep(7)  # what has failed for another reason is tried again after five seconds
    assert set(gets(server).values()) == {1}
    assert dsfs("dataset", "delete", "team/used", "-m", mount.mountpoint).returncode == 0
    wait_cached(mount, 30 * 100_000)


def test_one_that_is_hidden_can_be_deleted(mounts: Mounts, server: web.Hostile) -> None:
    put_tree(server, some_files(3))
    gate = server.gate("/data/d/f001", 100)
    mount = mount_with(mounts, server, "required")
    assert gate.reached.wait(10)
    assert dsfs("dataset", "delete", "team/data", "-m", mount.mountpoint).returncode == 0
    gate.open()
    assert [each["name"] for each in mount.status()["datasets"]] == ["other"]
    assert names(mount.mountpoint) == ["default"]
    apply(mounts, mount, document(server, "required"))
    eventually(lambda: names(mount.mountpoint) == ["default", "team"], 20, "it is seen")
