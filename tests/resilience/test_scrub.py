"""The background check: what a disk forgot is found without anybody reading, and comes anew with the next read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.contract.conftest import flip_byte
from tests.mounts import Mounts, eventually
from tests.pages import drop_pages
from tests.resilience.conftest import make_tree, mount_path


@pytest.mark.parametrize("path", ["passthrough", "openless"])
def test_flipped_bytes_are_found_without_a_reader(mounts: Mounts, tmp_path: Path, path: str) -> None:
    source = make_tree(tmp_path / "source", files=5, large_mib=8)
    (large,) = [file for file in source.rglob("*") if file.is_file() and file.stat().st_size >= 8 << 20]
    mount = mount_path(mounts, path, source, "--scrub-every=1s")
    place = mount.root / large.relative_to(source)
    for file in source.rglob("*"):
        if file.is_file():
            assert (mount.root / file.relative_to(source)).read_bytes() == file.read_bytes()
    eventually(lambda: mount.dataset()["cached_bytes"] == mount.dataset()["bytes"], 15, "all of it is cached")
    assert mount.sum_of("dsfs_cache_corrupt_blocks_total") == 0
    mount.expect_log("corrupt block dropped")
    flip_byte(mount.cache_dir, 8 << 20)
    eventually(lambda: mount.sum_of("dsfs_cache_corrupt_blocks_total") > 0, 20, "the flipped byte is found")
    assert mount.sum_of("dsfs_cache_scrubbed_bytes_total") > 0
    drop_pages(place)  # the kernel has right ones of it from the first time, and asks nobody
    before = mount.sum_of("dsfs_origin_read_bytes_total")
    assert place.read_bytes() == large.read_bytes()
    assert mount.sum_of("dsfs_origin_read_bytes_total") > before
    assert mount.log().count("corrupt block dropped") == 1


def test_a_restarted_server_goes_on_where_the_last_one_was(mounts: Mounts, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", files=40, large_mib=4)
    mount = mount_path(mounts, "daemon", source, "--scrub-every=12s")
    for file in source.rglob("*"):
        if file.is_file():
            (mount.root / file.relative_to(source)).read_bytes()
    began = {mount.sum_of("dsfs_cache_scrub_rounds_total"): 1 << 40}  # not in the one that may have begun before

    def in_the_middle() -> bool:
        seen = mount.sum_of("dsfs_cache_scrubbed_bytes_total")
        return seen - began.setdefault(mount.sum_of("dsfs_cache_scrub_rounds_total"), seen) > 5 << 20

    eventually(in_the_middle, 60, "it is through with something of a round that has all to look at")
    assert mount.unmount().returncode == 0
    stopped = json.loads((mount.cache_dir / "scrub.json").read_text())
    assert len(stopped["after"]) == 64
    keys = sorted(path.stem for path in (mount.cache_dir / "objects").rglob("*.map"))
    behind = [key for key in keys if key < stopped["after"] or (key == stopped["after"] and not stopped["blocks"])]
    assert behind
    # The last of them: the next round, which begins at once, comes to it after a while, and not before it is looked at.
    (mount.cache_dir / "objects" / behind[-1][:2] / behind[-1]).write_bytes(b"not what it was")
    again = mount_path(mounts, "daemon", source, "--scrub-every=8s", cache_dir=mount.cache_dir)
    again.expect_log("cached object dropped")
    eventually(lambda: again.sum_of("dsfs_cache_scrub_rounds_total") > 0, 20, "the round that was begun is at its end")
    assert again.sum_of("dsfs_cache_corrupt_blocks_total") == 0  # it lies behind where the round was
    eventually(lambda: again.sum_of("dsfs_cache_corrupt_blocks_total") == 1, 20, "the next round finds it")
