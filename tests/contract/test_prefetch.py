"""What comes without being asked for: seen at the origin, and in the metrics."""

from __future__ import annotations

import os
import random
from functools import partial
from pathlib import Path

import pytest

from tests.manifests import dataset, write_manifests
from tests.mounts import Mounts, eventually
from tests.servers import hostile as web
from tests.servers.web_tree import assert_each_came_once, gets, put_tree, some_files


@pytest.mark.parametrize("path", ["passthrough", "openless", "pyfuse3"])
def test_small_files_in_the_order_of_their_directory(mounts: Mounts, path: str) -> None:
    files = some_files(60)
    session, spec = ("pyfuse3", {}) if path == "pyfuse3" else ("direct", {"readPath": path})
    with web.hostile() as server:
        uri = put_tree(server, files)
        manifest = write_manifests(mounts.directory / "m.yaml", dataset("data", uri, type="HTTP", **spec))
        mount = mounts.mount("-f", manifest, session=session, dataset="default/data")
        for name in sorted(files)[:8]:
            assert (mount.root / name).read_bytes() == files[name]
        eventually(lambda: len(gets(server)) > 16, 10, "more than twice as many come")
        for name in sorted(files)[8:30]:
            assert (mount.root / name).read_bytes() == files[name]
        brought = mount.sum_of("dsfs_prefetch_bytes_total", policy="neighbours")
        assert brought >= 22 * 20_000
        assert_each_came_once(mount, server)


def test_the_rest_of_a_dataset_that_is_read_at_random_comes_behind_the_readers(mounts: Mounts, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(400):
        path = source / f"d{number % 7}/f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(3000))
    mount = mounts.mount(source)
    mount.wait_phase("READY")
    names = [str(path.relative_to(source)) for path in source.rglob("f*")]
    random.Random(7).shuffle(names)
    for name in names[:140]:
        assert (mount.root / name).read_bytes() == (source / name).read_bytes()
    eventually(lambda: mount.dataset()["cached_bytes"] == 400 * 3000, 60, "all of it is there")
    assert mount.sum_of("dsfs_origin_read_bytes_total") == 400 * 3000


def test_the_rest_of_the_directory_that_is_read_at_random_comes_alone(mounts: Mounts, tmp_path: Path) -> None:
    """What lies beside it is not read, and what is large in it is not like what was read."""
    source = tmp_path / "source"
    for place, number in [("train/a", 200), ("train/b", 200), ("val", 600)]:
        (source / place).mkdir(parents=True)
        for each in range(number):
            (source / place / f"f{each:03d}").write_bytes(os.urandom(3000))
    (source / "train" / "large").write_bytes(os.urandom(6 << 20))
    mount = mounts.mount(source)
    mount.wait_phase("READY")
    names = [str(path.relative_to(source)) for path in (source / "train").rglob("f*")]
    random.Random(7).shuffle(names)
    for name in names[:60]:
        assert (mount.root / name).read_bytes() == (source / name).read_bytes()
    assert mount.sum_of("dsfs_origin_read_bytes_total") < 100 * 3000, "a look at some of them is not a reading of all"
    for name in names[60:100]:
        assert (mount.root / name).read_bytes() == (source / name).read_bytes()
    eventually(lambda: mount.dataset()["cached_bytes"] == 400 * 3000, 60, "all small ones of it are there")
    brought = partial(mount.sum_of, "dsfs_prefetch_bytes_total", policy="completion")
    eventually(lambda: brought() >= 250 * 3000, 10, "it is told who asked for that")
    for name in names:
        assert (mount.root / name).read_bytes() == (source / name).read_bytes()
    assert mount.sum_of("dsfs_origin_read_bytes_total") == 400 * 3000


def test_a_large_file_is_no_part_of_many_small_ones(mounts: Mounts, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(os.urandom(6 << 20))  # most of the bytes
    for number in range(3000):
        (source / f"f{number:04d}").write_bytes(os.urandom(3000))
    mount = mounts.mount(source)
    mount.wait_phase("READY")
    assert (mount.root / "large").read_bytes() == (source / "large").read_bytes()
    names = [f"f{number:04d}" for number in range(3000)]
    random.Random(7).shuffle(names)
    for name in names[:170]:
        assert (mount.root / name).read_bytes() == (source / name).read_bytes()
    assert mount.sum_of("dsfs_origin_read_bytes_total") < (6 << 20) + 250 * 3000, "nobody asked for the rest"
    for name in names[170:400]:
        assert (mount.root / name).read_bytes() == (source / name).read_bytes()
    eventually(lambda: mount.dataset()["cached_bytes"] == (6 << 20) + 3000 * 3000, 60, "now all of it is there")


@pytest.mark.parametrize("path", ["passthrough", "openless", "daemon", "pyfuse3"])
def test_a_look_into_a_large_file_does_not_wait_for_all_of_its_block(mounts: Mounts, path: str) -> None:
    data, at = os.urandom(24 << 20), 20 << 20
    session, spec = ("pyfuse3", {}) if path == "pyfuse3" else ("direct", {"readPath": path})
    with web.hostile() as server:
        uri = put_tree(server, {"model.bin": data})
        manifest = write_manifests(mounts.directory / "m.yaml", dataset("data", uri, type="HTTP", **spec))
        mount = mounts.mount("-f", manifest, session=session, dataset="default/data")
        gate = server.gate("/data/model.bin", 300_000)
        with (mount.root / "model.bin").open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 1000, at) == data[at : at + 1000]
            assert gate.reached.wait(10)  # the server says so after what it has sent
            assert mount.dataset()["cached_bytes"] == 0
            gate.open()
            assert os.pread(file.fileno(), 1 << 20, at) == data[at : at + (1 << 20)]
        began = [asked.range[0] for asked in server.asked if asked.range is not None]
        assert began.count(at) == 1, "the rest of the block came along"


def test_a_footer_comes_with_the_open(mounts: Mounts) -> None:
    """Also: two looks into a large file are no reason to fetch it."""
    data = os.urandom(40 << 20)
    with web.hostile() as server:
        uri = put_tree(server, {"table.parquet": data})
        manifest = write_manifests(
            mounts.directory / "m.yaml", dataset("data", uri, type="HTTP", readPath="passthrough")
        )
        mount = mounts.mount("-f", manifest, dataset="default/data")
        fd = os.open(mount.root / "table.parquet", os.O_RDONLY)
        try:
            eventually(lambda: gets(server)["table.parquet"] == 1, 10, "it is asked for before it is read")
            assert os.pread(fd, 1000, len(data) - 1000) == data[-1000:]
            assert os.pread(fd, 1000, 20 << 20) == data[20 << 20 : (20 << 20) + 1000]
        finally:
            os.close(fd)
        first = next(asked for asked in server.asked if asked.method == "GET" and asked.range is not None)
        assert first.range == (len(data) - (1 << 20), len(data) - 1)
        assert mount.sum_of("dsfs_origin_read_bytes_total") <= 4 << 20
