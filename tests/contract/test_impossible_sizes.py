"""Sizes that no file can have, and sums of sizes that no number holds: such a name says so, and costs no other."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.contract.conftest import one_line_failure
from tests.contract.test_refused_names import errno_of
from tests.contract.test_warm import mount_tree
from tests.manifests import dataset, write_manifests
from tests.mounts import Mounts, dsfs
from tests.servers import hostile as web
from tests.servers.listing_server import listing_server
from tests.servers.web_tree import put_tree

SAID = "a size at the source that no file can have"


@pytest.fixture
def server() -> Iterator[web.Hostile]:
    with web.hostile() as running:
        yield running


def of_size(size_bytes: int) -> web.Behaviour:
    """What a server that has lost count says to a HEAD."""

    def behaviour(asked: web.Asked, _data: bytes, answer: web.Answer) -> web.Answer:
        return replace(answer, content_length=size_bytes) if asked.method == "HEAD" else answer

    return behaviour


@pytest.mark.parametrize("size_bytes", [-1, 2**63, 2**70])
@pytest.mark.parametrize("session", ["direct", "pyfuse3"])
def test_a_bucket_with_one_of_them(mounts: Mounts, session: str, size_bytes: int) -> None:
    with listing_server(["a", "d/b", "d/odd"]) as server:
        server.sizes["d/odd"] = size_bytes
        options = {"endpoint": server.url, "region": "us-east-1", "anonymous": "true"}
        manifest = dataset("data", "s3://bucket/", "team", type="S3", source={"options": options})
        file = write_manifests(mounts.directory / "m.yaml", manifest)
        mount = mounts.mount("-f", file, session=session, dataset="team/data")
        mount.expect_log("sizes that no file can have|lookup")
        status = mount.wait_phase("READY")
        assert status["message"] == f"1 file has {SAID}: 'd/odd'"
        assert (status["files"], status["bytes"], status["skipped"]) == (3, 4, 0)
        assert sorted(os.listdir(mount.root / "d")) == ["b", "odd"]
        assert (mount.root / "d/b").read_bytes() == b"d/b"
        assert errno_of(lambda: os.stat(mount.root / "d/odd")) == errno.EOVERFLOW
        assert errno_of(lambda: os.open(mount.root / "d/odd", os.O_RDONLY)) == errno.EOVERFLOW


def test_a_web_server_with_one_of_them(mounts: Mounts, server: web.Hostile) -> None:
    """It may have it right later, and wrong again: each is a revision."""
    mount = mount_tree(mounts, put_tree(server, {"a": b"first", "d/b": b"second", "d/odd": b"third"}))
    mount.expect_log("sizes that no file can have|lookup")
    mount.wait_phase("READY")
    for _ in range(2):
        assert (mount.root / "d/odd").read_bytes() == b"third"
        server.always("/data/d/odd", of_size(10**19 - 1))
        assert dsfs("dataset", "resync", "team/data", "-m", mount.mountpoint).returncode == 0
        assert SAID in mount.dataset()["message"]
        assert sorted(os.listdir(mount.root / "d")) == ["b", "odd"]
        assert errno_of(lambda: os.stat(mount.root / "d/odd")) == errno.EOVERFLOW
        assert dsfs("warm", "team/data", "-m", mount.mountpoint).returncode == 0
        one_line_failure(dsfs("warm", "team/data/d/odd", "-m", mount.mountpoint), "d/odd", SAID)
        copy = mounts.directory / "copy"
        assert dsfs("export", "team/data", copy, "-m", mount.mountpoint).returncode == 1
        assert (copy / "d/b").read_bytes() == b"second"
        server.always("/data/d/odd", lambda _asked, _data, answer: answer)
        assert dsfs("dataset", "resync", "team/data", "-m", mount.mountpoint).returncode == 0


def test_who_looks_while_it_is_listed_is_told(mounts: Mounts, server: web.Hostile) -> None:
    server.always("/data/odd", of_size(10**19 - 1))
    uri = put_tree(server, {"a": b"first", "odd": b"second", "last/c": b"third"})
    listing = server.gate("/data/last/", 0)
    mount = mount_tree(mounts, uri)
    mount.expect_log("sizes that no file can have|lookup")
    assert errno_of(lambda: os.stat(mount.root / "odd")) == errno.EOVERFLOW
    assert (mount.root / "a").read_bytes() == b"first"
    listing.open()
    assert SAID in mount.wait_phase("READY")["message"]


@pytest.mark.parametrize("session", ["direct", "pyfuse3"])
def test_sums_that_no_number_holds(mounts: Mounts, server: web.Hostile, session: str) -> None:
    sizes = {"a": 5, "half": 2**62, "other": 2**62, "most": 2**63 - 1}
    for name, size_bytes in sizes.items():
        server.always(f"/data/{name}", of_size(size_bytes))
    mount = mount_tree(mounts, put_tree(server, dict.fromkeys(sizes, b"first")), "--session", session)
    status = mount.wait_phase("READY")
    assert (status["files"], status["bytes"]) == (4, 2**63 - 1)
    assert {entry.name: entry.stat().st_size for entry in os.scandir(mount.root)} == sizes
    assert (mount.root / "a").read_bytes() == b"first"
    disk = os.statvfs(mount.root)
    assert disk.f_blocks * disk.f_frsize == 2**63
    one_line_failure(dsfs("warm", "team/data", "-m", mount.mountpoint), "do not fit")
    one_line_failure(dsfs("pin", "team/data", "-m", mount.mountpoint), "pinned")
