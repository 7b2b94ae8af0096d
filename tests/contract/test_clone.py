"""``dsfs dataset clone``, and what two datasets of one source share: cached bytes, but not the right to them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import one_line_failure
from tests.contract.guarded import FILES, Guarded, errno_of, guarded, read_all, secret, wait_cached, web_dataset
from tests.manifests import dataset, write_manifests
from tests.mounts import Mounts, dsfs, eventually
from tests.servers import hostile as web

SESSIONS = ["direct", "pyfuse3"]


@pytest.fixture
def origin() -> Iterator[Guarded]:
    with guarded() as server:
        yield server


@pytest.mark.parametrize("session", SESSIONS)
def test_a_clone_is_ready_at_once_and_fetches_nothing(
    mounts: Mounts, origin: Guarded, tmp_path: Path, session: str
) -> None:
    origin.allow("fake-token-a")
    manifest = write_manifests(
        tmp_path / "m.yaml",
        web_dataset(origin, "one", "team", share=True, mountOptions={"mode": "0750"}),
        secret("team", token="fake-token-a"),
    )
    mount = mounts.mount("-f", manifest, session=session, dataset="team/one")
    where = f"-m{mount.mountpoint}"
    mount.wait_phase("READY", "one")
    read_all(mount.root)
    wait_cached(mount, "one")

    def heads_of_large() -> int:
        return sum((each.method, each.path) == ("HEAD", "/data/large") for each in origin.server.asked)

    eventually(lambda: heads_of_large() == 2, 10, "its size was asked for, and behind its reader its hash")
    asked = len(origin.server.asked)

    done = dsfs("dataset", "clone", "team/one", "two", where, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"cloned": "team/one", "dataset": "team/two"}
    one, two = mount.dataset("one"), mount.dataset("two")
    assert two["phase"] == "READY"
    for key in ("namespace", "source", "revision", "files", "bytes"):
        assert one[key] == two[key]
    clone = mount.mountpoint / "team/two"
    read_all(clone)
    assert os.stat(clone / "a.txt").st_mode == os.stat(mount.root / "a.txt").st_mode
    assert sorted(os.listdir(mount.mountpoint / "team")) == ["one", "two"]
    wait_cached(mount, "two")
    assert json.loads(dsfs("dataset", "show", "team/two", where, "--json").stdout)["manifest"]["spec"]["share"] is False

    if session == "direct":
        mount.kill_server()
        eventually(lambda: mount.look()["healthy"], 20, "the next server answers")
        assert mount.dataset("two")["phase"] == "READY"
        assert dsfs("restart", mount.mountpoint).returncode == 0
        read_all(clone)
    assert len(origin.server.asked) == asked, "neither listed nor read again"

    assert dsfs("dataset", "delete", "team/one", where).returncode == 0
    read_all(clone)
    assert dsfs("dataset", "resync", "team/two", where).returncode == 0
    read_all(clone)


def test_what_cannot_be_cloned(mounts: Mounts, source: Path, tmp_path: Path) -> None:
    manifest = write_manifests(tmp_path / "m.yaml", dataset("one", source, "team"), dataset("two", source, "team"))
    mount = mounts.mount("-f", manifest, dataset="team/one")
    where = f"-m{mount.mountpoint}"
    one_line_failure(dsfs("dataset", "clone", "team/one", "team/two", where), "team/two", "already")
    one_line_failure(dsfs("dataset", "clone", "team/none", "team/three", where), "team/none", "no such dataset")
    one_line_failure(dsfs("dataset", "clone", "team/one", "team/Three", where), "team/Three")
    one_line_failure(dsfs("dataset", "clone", "team/one", "a/b/c", where), "a/b/c")
    one_line_failure(dsfs("dataset", "clone", "team/one/sub", "team/three", where), "path")
    assert sorted(os.listdir(mount.mountpoint / "team")) == ["one", "two"]
    assert (mount.root / "a.txt").read_bytes() == b"first"

    single = mounts.mount(source)
    one_line_failure(dsfs("dataset", "clone", "source", "three", f"-m{single.mountpoint}"), "mount it with -f")
    narrow = mounts.mount("-f", manifest, "--namespace=team")
    one_line_failure(dsfs("dataset", "clone", "team/one", "other/one", f"-m{narrow.mountpoint}"), "not be visible")


def test_a_clone_in_another_namespace_needs_credentials_of_its_own(
    mounts: Mounts, origin: Guarded, tmp_path: Path
) -> None:
    origin.allow("fake-token-a", "fake-token-c")
    manifest = write_manifests(
        tmp_path / "m.yaml",
        web_dataset(origin, "one", "a"),
        secret("a", token="fake-token-a"),
        secret("b", token="fake-token-b"),
        secret("c", token="fake-token-c"),
    )
    mount = mounts.mount("-f", manifest, dataset="a/one")
    where = f"-m{mount.mountpoint}"
    mount.wait_phase("READY", "one")
    read_all(mount.root)
    wait_cached(mount, "one")
    one_line_failure(dsfs("dataset", "clone", "a/one", "none/one", where), "none/one", "secretRef", "web")
    line = one_line_failure(dsfs("dataset", "clone", "a/one", "b/one", where), "b/one", "own credentials")
    assert "fake-token" not in line
    assert sorted(os.listdir(mount.mountpoint)) == ["a"], "not even the names are shown"
    before = origin.reads()
    done = dsfs("dataset", "clone", "a/one", "c/one", where)
    assert done.returncode == 0, done.stderr
    read_all(mount.mountpoint / "c/one")
    assert origin.reads()[len(before) :] == [("fake-token-c", 1)]


@pytest.mark.parametrize("path", ["passthrough", "openless", "daemon"])
def test_cached_bytes_are_shared_by_those_who_may_read_them(
    mounts: Mounts, origin: Guarded, tmp_path: Path, path: str
) -> None:
    """b may read too, c may list only. All see the names; a has brought the bytes."""
    origin.allow("fake-token-a", "fake-token-b")
    origin.may_list.add("fake-token-c")
    manifest = write_manifests(
        tmp_path / "m.yaml",
        *(web_dataset(origin, name, name, readPath=path) for name in "abc"),
        *(secret(name, token=f"fake-token-{name}") for name in "abc"),
    )
    mount = mounts.mount("-f", manifest)
    for name in "abc":
        mount.wait_phase("READY", name)
    read_all(mount.mountpoint / "a/a")
    wait_cached(mount, "a")
    before = origin.reads()
    read_all(mount.mountpoint / "b/b")
    assert origin.reads()[len(before) :] == [("fake-token-b", 1)], "one byte, once"

    mount.expect_log("fetch failed|fake-token-c")
    for name in FILES:
        assert errno_of(mount.mountpoint / "c/c", name) == errno.EACCES
    assert "403" in mount.dataset("c")["message"]
    assert {count for token, count in origin.reads() if token == "fake-token-c"} <= {1}
    origin.may_read.add("fake-token-c")
    read_all(mount.mountpoint / "c/c")
    assert sum(count for token, count in origin.reads() if token != "fake-token-a") < 10


def test_who_has_read_before_is_served_when_the_origin_is_gone(mounts: Mounts, origin: Guarded, tmp_path: Path) -> None:
    origin.allow("fake-token-a", "fake-token-b")
    documents = [web_dataset(origin, name, name, readPath="daemon") for name in "ab"]
    secrets = [secret(name, token=f"fake-token-{name}") for name in "ab"]
    manifest = write_manifests(tmp_path / "m.yaml", *documents, *secrets)
    mount = mounts.mount("-f", manifest)
    for name in "ab":
        mount.wait_phase("READY", name)
    read_all(mount.mountpoint / "a/a")
    wait_cached(mount, "a")
    eventually(lambda: list(mount.cache_dir.rglob("proofs")), 10, "it is written down")
    assert mount.unmount().returncode == 0

    for path in ("", *FILES):
        origin.server.always(f"/data/{path}", web.status(503))
    again = mounts.mount("-f", manifest, "--read-timeout=2s", cache_dir=mount.cache_dir)
    again.expect_log("source does not answer|listing failed|fetch failed|resync failed")
    for name in "ab":
        again.wait_phase("READY", name)
    read_all(again.mountpoint / "a/a")
    assert errno_of(again.mountpoint / "b/b") in (errno.EIO, errno.ETIMEDOUT), "listed, but never read"
    # and with credentials that were never tried
    write_manifests(tmp_path / "s.yaml", secret("a", token="fake-token-other"))
    assert dsfs("dataset", "apply", f"-f{tmp_path}/s.yaml", f"-m{again.mountpoint}").returncode == 0
    eventually(lambda: errno_of(again.mountpoint / "a/a", "b.bin") != 0, 15, "they are used")
    write_manifests(tmp_path / "s.yaml", secret("a", token="fake-token-a"))
    assert dsfs("dataset", "apply", f"-f{tmp_path}/s.yaml", f"-m{again.mountpoint}").returncode == 0
    eventually(lambda: errno_of(again.mountpoint / "a/a", "b.bin") == 0, 15, "these have read before")
