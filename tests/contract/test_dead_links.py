"""An index whose links are less than they seem: what was listed before that was known is not shown for ever."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.manifests import dataset, write_manifests
from tests.mounts import Mounts
from tests.servers import hostile as web
from tests.servers.web_tree import put_tree


@pytest.fixture
def server() -> Iterator[web.Hostile]:
    with web.hostile() as running:
        yield running


@pytest.mark.parametrize("session", ["direct", "pyfuse3"])
def test_a_listing_from_before_they_were_asked_for_goes(mounts: Mounts, server: web.Hostile, session: str) -> None:
    uri = put_tree(server, {"a.txt": b"first", "dead": b"", "hidden": b"", "d/dead": b"", "d/b.txt": b"second"})
    put_tree(server, {"x": b"third"}, "/data/hidden/")
    links = ("/data/dead", "/data/d/dead", "/data/hidden")
    for link in links:
        server.always(link, web.status(503, Retry_After="1"))
    file = write_manifests(mounts.directory / "m.yaml", dataset("data", uri, "team", type="HTTP"))
    mount = mounts.mount("-f", file, session=session, dataset="team/data")
    mount.expect_log("listing failed|lookup")
    for _ in range(2):
        assert sorted(os.listdir(mount.root)) == ["a.txt", "d", "dead", "hidden"]
        assert sorted(os.listdir(mount.root / "d")) == ["b.txt", "dead"]
    assert os.stat(mount.root).st_nlink == 3
    server.always("/data/dead", web.status(404))
    server.always("/data/d/dead", web.status(404))
    server.always("/data/hidden", web.status(301, Location="/data/hidden/"))
    mount.wait_phase("READY")
    assert sorted(os.listdir(mount.root)) == ["a.txt", "d", "hidden"]
    assert [entry.name for entry in os.scandir(mount.root) if entry.is_dir(follow_symlinks=False)] == ["d", "hidden"]
    assert os.listdir(mount.root / "d") == ["b.txt"]
    assert os.stat(mount.root).st_nlink == 4
    assert (mount.root / "hidden/x").read_bytes() == b"third"
    with pytest.raises(FileNotFoundError):
        os.stat(mount.root / "dead")
