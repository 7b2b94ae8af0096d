"""``dsfs pin``, ``dsfs unpin``, and what they keep ``dsfs evict`` and a full cache from."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import one_line_failure, wrong_usage
from tests.manifests import dataset, write_manifests
from tests.mounts import DSFS, Mount, Mounts, clean_environment, dsfs, eventually
from tests.servers import hostile as web
from tests.servers.web_tree import put_tree, some_files

KIB = 1 << 10
FILE = 200 * KIB


def make(source: Path, *names: str) -> None:
    for name in names:
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(FILE))


def read(mount: Mount, source: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in sorted(source.rglob(pattern)):
            if path.is_file():
                assert (mount.root / path.relative_to(source)).read_bytes() == path.read_bytes()


def told(mount: Mount, *argv: str) -> Any:
    done = dsfs(*argv, f"-m{mount.mountpoint}", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def cached(mount: Mount, name: str) -> int:
    return int(os.getxattr(mount.root / name, "user.dsfs.cached"))


def wait_pinned(mount: Mount, size_bytes: int) -> None:
    eventually(lambda: mount.dataset()["pinned_bytes"] == size_bytes, 10, f"{size_bytes} bytes are pinned")


def test_what_is_pinned_is_not_evicted(mounts: Mounts, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make(source, "train/a", "train/b", "test/a", "readme")
    mount = mounts.mount(source)
    read(mount, source, "train/*", "test/*")
    assert told(mount, "pin", "source/train") == {"pinned_bytes": 2 * FILE, "files": 2}
    assert told(mount, "pin", "source/readme") == {"pinned_bytes": FILE, "files": 1}
    wait_pinned(mount, 2 * FILE)  # what is here; the readme is not
    one_line_failure(dsfs("evict", "source/train/*", f"-m{mount.mountpoint}"), "source/train", "pinned", "dsfs unpin")
    done = dsfs("evict", "source", f"-m{mount.mountpoint}")
    assert done.returncode == 0
    assert "2 cached files stay" in done.stdout
    assert (cached(mount, "train/a"), cached(mount, "train/b"), cached(mount, "test/a")) == (FILE, FILE, 0)
    read(mount, source, "readme")
    wait_pinned(mount, 3 * FILE)  # and what comes later is held too
    listed = told(mount, "pin", "--list")
    assert [each["selector"] for each in listed] == ["default/source/train", "default/source/readme"]
    assert "default/source/train" in dsfs("pin", "--list", f"-m{mount.mountpoint}").stdout
    assert told(mount, "unpin", "source/train") == {"pinned_bytes": 0, "files": 0}
    wait_pinned(mount, FILE)
    assert told(mount, "evict", "source/train")["evicted_bytes"] >= 2 * FILE
    assert told(mount, "unpin", "source") == {"pinned_bytes": 0, "files": 0}
    assert told(mount, "pin", "--list") == []
    one_line_failure(dsfs("unpin", "source", f"-m{mount.mountpoint}"), "default/source", "is not pinned")


def test_a_part_of_a_pin_cannot_be_unpinned_and_two_that_overlap_hold_both(mounts: Mounts, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make(source, "train/a.bin", "train/b.txt", "c.bin")
    mount = mounts.mount(source)
    told(mount, "pin", "source/train")
    one_line_failure(dsfs("unpin", "source/train/a.bin", f"-m{mount.mountpoint}"), "not pinned", "default/source/train")
    assert told(mount, "pin", "source/*.bin")["files"] == 2
    assert told(mount, "unpin", "source/train") == {"pinned_bytes": FILE, "files": 1}
    read(mount, source, "*")
    wait_pinned(mount, 2 * FILE)


def test_a_pin_outlives_servers_mounts_and_the_index(mounts: Mounts, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make(source, "a", "b")
    mount = mounts.mount(source)
    told(mount, "pin", "source/a")
    read(mount, source, "*")
    wait_pinned(mount, FILE)
    mount.kill_server()
    eventually(lambda: mount.look()["healthy"], 20, "the next server answers")
    wait_pinned(mount, FILE)
    assert mount.unmount().returncode == 0
    for name in (mount.cache_dir / "index").iterdir():
        name.unlink()
    again = mounts.mount(source, cache_dir=mount.cache_dir)
    wait_pinned(again, FILE)
    one_line_failure(dsfs("evict", "source/a", f"-m{again.mountpoint}"), "pinned")


def test_a_pin_follows_a_resync_and_dies_with_its_dataset(mounts: Mounts, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make(source, "keep/a", "keep/b", "c")
    manifest = write_manifests(tmp_path / "m.yaml", dataset("data", source, "team"))
    mount = mounts.mount("-f", manifest, dataset="team/data")
    assert told(mount, "pin", "team/data/keep")["files"] == 2
    read(mount, source, "*")
    wait_pinned(mount, 2 * FILE)
    make(source, "keep/a", "keep/new")  # one anew, one more
    (source / "keep/b").unlink()
    assert dsfs("dataset", "resync", "team/data", f"-m{mount.mountpoint}").returncode == 0
    wait_pinned(mount, 0)  # what only the old revision had is not held any more
    read(mount, source, "keep/*")
    wait_pinned(mount, 2 * FILE)
    assert dsfs("dataset", "delete", "team/data", f"-m{mount.mountpoint}").returncode == 0
    assert told(mount, "pin", "--list") == []
    assert json.loads((mount.cache_dir / "pins.json").read_text()) == {"pins": {}}


def test_a_pin_that_cannot_fit_is_refused_with_the_numbers(mounts: Mounts, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make(source, *(f"d{number % 2}/{number}" for number in range(20)))
    mount = mounts.mount(source, f"--cache-size={14 * FILE + 1200 * KIB}")  # directories of the cache take their part
    told(mount, "pin", "source/d0")
    line = one_line_failure(
        dsfs("pin", "source", f"-m{mount.mountpoint}"), "default/source", "does not fit", "--cache-size"
    )
    assert f"{10 * (FILE + 4 * KIB):,} bytes more" in line
    assert [each["selector"] for each in told(mount, "pin", "--list")] == ["default/source/d0"]
    for _epoch in range(2):  # more than the cache holds goes through it, and what is pinned stays
        read(mount, source, "*")
    wait_pinned(mount, 10 * FILE)
    for number in range(0, 20, 2):
        assert cached(mount, f"d0/{number}") == FILE
    assert told(mount, "pin", "source/d0/0")["files"] == 1  # is pinned already, so it takes nothing more


def test_a_pin_is_measured_when_all_is_listed(mounts: Mounts, tmp_path: Path) -> None:
    with web.hostile() as server:
        uri = put_tree(server, some_files(3, FILE, "early") | some_files(9, FILE, "late"))
        gate = server.gate("/data/late/", 0)
        manifest = write_manifests(tmp_path / "m.yaml", dataset("data", uri, type="HTTP"))
        mount = mounts.mount("-f", manifest, "--cache-size=2MiB")
        command = [DSFS, "pin", "data", f"-m{mount.mountpoint}"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=clean_environment()) as pin:
            with pytest.raises(subprocess.TimeoutExpired):
                pin.wait(2)
            gate.open()
            assert pin.stderr is not None
            assert "does not fit" in pin.stderr.read()
        assert pin.returncode == 1
        assert told(mount, "pin", "--list") == []
        assert told(mount, "pin", "data/early")["files"] == 3


def test_what_two_datasets_share_is_held_by_either(mounts: Mounts, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make(source, "a")
    manifest = write_manifests(
        tmp_path / "m.yaml",
        dataset("own", source, "one", share=True),
        dataset("lent", "dataset://one/own", "two", type="REFERENCE"),
    )
    mount = mounts.mount("-f", manifest, dataset="one/own")
    told(mount, "pin", "one/own")
    told(mount, "pin", "two/lent")
    read(mount, source, "a")
    for name in ("own", "lent"):
        eventually(lambda name=name: mount.dataset(name)["pinned_bytes"] == FILE, 10, f"{name} is pinned")
    told(mount, "unpin", "one/own")
    one_line_failure(dsfs("evict", "one/own", f"-m{mount.mountpoint}"), "pinned")
    told(mount, "unpin", "two/lent")
    assert told(mount, "evict", "one/own")["evicted_bytes"] >= FILE


def test_wrong_pins(mounts: Mounts, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make(source, "a")
    mount = mounts.mount(source)
    wrong_usage(dsfs("pin"), "Usage")
    wrong_usage(dsfs("pin", "source", "--list"), "Usage")
    wrong_usage(dsfs("unpin"), "Usage")
    one_line_failure(dsfs("pin", "none", f"-m{mount.mountpoint}"), "none", "default/source")
    one_line_failure(dsfs("unpin", "none", f"-m{mount.mountpoint}"), "none", "default/source")
    assert told(mount, "pin", "source/later/*") == {"pinned_bytes": 0, "files": 0}


def test_a_pin_of_a_name_that_is_no_text_is_listed(mounts: Mounts, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make(source, os.fsdecode(b"caf\xe9.bin"), "two\nlines")
    mount = mounts.mount(source)
    for name in (os.fsdecode(b"caf\xe9.bin"), "two\nlines"):
        assert dsfs("pin", f"source/{name}", f"-m{mount.mountpoint}").returncode == 0
    done = dsfs("pin", "--list", f"-m{mount.mountpoint}", env={"PYTHONIOENCODING": "utf-8:strict"})
    assert (done.returncode, done.stderr) == (0, "")
    assert r"caf\udce9.bin" in done.stdout
    assert r"source/two\nlines " in done.stdout


def test_pins_that_cannot_be_read(mounts: Mounts, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make(source, "a")
    mount = mounts.mount(source)
    told(mount, "pin", "source")
    assert mount.unmount().returncode == 0
    (mount.cache_dir / "pins.json").write_text("{")
    done = dsfs("mount", source, mount.mountpoint, f"--cache-dir={mount.cache_dir}")
    one_line_failure(done, "pins.json", "damaged")


def test_a_pin_that_its_quota_cannot_hold_is_refused(mounts: Mounts, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make(source, "a", "b")
    manifest = write_manifests(tmp_path / "m.yaml", dataset("data", source, cache={"quota": "250KiB"}))
    mount = mounts.mount("-f", manifest)
    mount.wait_phase("READY")
    one_line_failure(dsfs("pin", "data", f"-m{mount.mountpoint}"), "default/data", "does not fit", "quota")
    assert told(mount, "pin", "--list") == []
    assert told(mount, "pin", "data/a")["files"] == 1
    line = one_line_failure(dsfs("pin", "data/b", f"-m{mount.mountpoint}"), "does not fit", "quota")
    assert f"{FILE + 4 * KIB:,} are pinned already" in line, "though it is not here yet"
