"""Single names that a source refuses: they say so, and all others are one whole revision."""

from __future__ import annotations

import errno
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import one_line_failure
from tests.contract.test_warm import mount_tree, warm
from tests.manifests import dataset, write_manifests
from tests.mounts import Mount, Mounts, dsfs, eventually
from tests.servers import hostile as web
from tests.servers.web_tree import as_html, put_tree

FILES = {"a.txt": b"first", "d/b.txt": b"second", "lost+found/c.txt": b"third", "private.txt": b"fourth"}
REFUSED = ("/data/lost+found/", "/data/private.txt")


@pytest.fixture
def server() -> Iterator[web.Hostile]:
    with web.hostile() as running:
        yield running


def refuse(_asked: web.Asked, _data: bytes, _answer: web.Answer) -> web.Answer:
    return web.Answer(403, {}, b"")


def give(_asked: web.Asked, _data: bytes, answer: web.Answer) -> web.Answer:
    return answer


def errno_of(work: Callable[[], object]) -> int | None:
    try:
        work()
    except OSError as error:
        return error.errno
    return None


def mount_all_but_two(
    mounts: Mounts, server: web.Hostile, session: str = "auto", private: web.Behaviour = refuse
) -> Mount:
    manifest = dataset("data", put_tree(server, FILES), "team", type="HTTP")
    for path, behaviour in zip(REFUSED, (refuse, private), strict=True):
        server.always(path, behaviour)
    mount = mounts.mount(
        "-f", write_manifests(mounts.directory / "m.yaml", manifest), session=session, dataset="team/data"
    )
    mount.expect_log("lookup|readdir|opendir")
    mount.wait_phase("READY")
    return mount


@pytest.mark.parametrize("session", ["direct", "pyfuse3"])
def test_all_others_are_a_revision(mounts: Mounts, server: web.Hostile, session: str) -> None:
    mount = mount_all_but_two(mounts, server, session)
    status = mount.dataset()
    assert "2 names are refused by the source" in status["message"]
    assert "403" in status["message"]
    assert sorted(os.listdir(mount.root)) == ["a.txt", "d", "lost+found", "private.txt"]
    assert (mount.root / "d/b.txt").read_bytes() == b"second"
    assert errno_of(lambda: os.listdir(mount.root / "lost+found")) == errno.EACCES
    assert errno_of(lambda: os.stat(mount.root / "lost+found/c.txt")) == errno.EACCES
    assert errno_of(lambda: os.stat(mount.root / "lost+found/no")) == errno.EACCES, "nobody knows that it is not there"
    assert errno_of(lambda: os.stat(mount.root / "private.txt")) == errno.EACCES
    assert errno_of(lambda: os.stat(mount.root / "no")) == errno.ENOENT
    job = warm(mount, "team/data")
    assert (job["state"], job["files"]) == ("done", 2)
    one_line_failure(dsfs("warm", "team/data/lost+found", "-m", mount.mountpoint), "lost+found", "403")


def test_all_others_are_exported(mounts: Mounts, server: web.Hostile, tmp_path: Path) -> None:
    mount = mount_all_but_two(mounts, server)
    copy, tar = tmp_path / "copy", tmp_path / "copy.tar"
    for target in (copy, tar):
        done = dsfs("export", "team/data", target, "-m", mount.mountpoint)
        assert done.returncode == 1
        assert "2 files" in done.stderr.splitlines()[0]
        assert "2 names that the source refuses or that cannot be read" in done.stderr.splitlines()[1]
        assert "lost+found" in done.stderr.splitlines()[1]
    with tarfile.open(tar) as packed:
        assert sorted(packed.getnames()) == ["a.txt", "d", "d/b.txt", "lost+found"]
    shown = [path for path in copy.rglob("*") if path.relative_to(copy).parts[0] != ".dsfs-export"]
    assert sorted(path.name for path in shown) == ["a.txt", "b.txt", "d", "lost+found"]
    assert (copy / "d/b.txt").read_bytes() == b"second"
    server.always("/data/lost+found/", as_html)
    server.always("/data/private.txt", give)
    assert dsfs("dataset", "resync", "team/data", "-m", mount.mountpoint).returncode == 0
    sent = server.sent_bytes["/data/d/b.txt"]
    assert dsfs("export", "team/data", copy, "-m", mount.mountpoint).returncode == 0
    assert {str(path.relative_to(copy)): path.read_bytes() for path in copy.rglob("*") if path.is_file()} == FILES
    assert server.sent_bytes["/data/d/b.txt"] == sent


def test_what_cannot_be_read_is_not_exported(mounts: Mounts, server: web.Hostile, tmp_path: Path) -> None:
    mount = mount_all_but_two(mounts, server, private=web.status(423))
    assert "1 file cannot be read from the source" in mount.dataset()["message"]
    assert errno_of(lambda: os.stat(mount.root / "private.txt")) == errno.EIO
    done = dsfs("export", "team/data", tmp_path / "copy", "-m", mount.mountpoint)
    assert done.returncode == 1
    assert "2 names that the source refuses or that cannot be read" in done.stderr.splitlines()[1]
    assert not (tmp_path / "copy/private.txt").exists()
    assert (tmp_path / "copy/d/b.txt").read_bytes() == b"second"


def test_it_is_resynced_and_what_is_allowed_later_is_there(mounts: Mounts, server: web.Hostile) -> None:
    mount = mount_all_but_two(mounts, server)
    assert (mount.root / "a.txt").read_bytes() == b"first"
    server.files["/data/a.txt"] = b"another"
    assert dsfs("dataset", "resync", "team/data", "-m", mount.mountpoint).returncode == 0
    assert (mount.root / "a.txt").read_bytes() == b"another"
    assert errno_of(lambda: os.listdir(mount.root / "lost+found")) == errno.EACCES
    server.always("/data/lost+found/", as_html)
    server.always("/data/private.txt", give)
    assert dsfs("dataset", "resync", "team/data", "-m", mount.mountpoint).returncode == 0
    assert (mount.root / "lost+found/c.txt").read_bytes() == b"third"
    assert (mount.root / "private.txt").read_bytes() == b"fourth"
    assert mount.dataset()["message"] == ""


def test_what_somebody_has_found_below_stays_through_a_resync(mounts: Mounts, server: web.Hostile) -> None:
    """A server that lists a directory to nobody, and gives its files to who knows their names."""
    uri = put_tree(server, {**FILES, **{f"many/{number}": b"x" for number in range(3)}})
    server.always("/data/lost+found/", refuse)
    crawling = server.gate("/data/many/", 0)
    mount = mount_tree(mounts, uri)
    assert (mount.root / "lost+found/c.txt").read_bytes() == b"third"
    crawling.open()
    status = mount.wait_phase("READY")
    for content in (b"another", b"and another"):
        number = os.stat(mount.root / "lost+found/c.txt").st_ino
        server.files["/data/a.txt"] = content
        assert dsfs("dataset", "resync", "team/data", "-m", mount.mountpoint).returncode == 0
        assert (mount.root / "a.txt").read_bytes() == content
        assert (mount.root / "lost+found/c.txt").read_bytes() == b"third"
        assert os.stat(mount.root / "lost+found/c.txt").st_ino == number
        assert mount.dataset()["files"] == status["files"]


def test_who_looks_at_it_has_it_asked_for_again(mounts: Mounts, server: web.Hostile) -> None:
    """Also where it is empty, so that no name differs."""
    uri = put_tree(server, FILES)
    server.files["/data/lost+found/"] = b"<html><body></body></html>"
    server.always("/data/lost+found/", refuse)
    mount = mount_tree(mounts, uri)
    mount.expect_log("lookup|readdir|opendir")
    mount.wait_phase("READY")
    server.always("/data/lost+found/", as_html)
    assert errno_of(lambda: os.listdir(mount.root / "lost+found")) == errno.EACCES
    eventually(lambda: errno_of(lambda: os.listdir(mount.root / "lost+found")) is None, 60, "it is listed again")
    assert mount.dataset()["message"] == ""


def test_what_is_shown_is_not_taken_away_by_a_refusal(mounts: Mounts, server: web.Hostile) -> None:
    mount = mount_tree(mounts, put_tree(server, FILES))
    mount.expect_log("resync failed")
    mount.wait_phase("READY")
    assert (mount.root / "lost+found/c.txt").read_bytes() == b"third"
    revision = mount.dataset()["revision"]
    server.files["/data/a.txt"] = b"another"
    for path in REFUSED:
        server.always(path, refuse)
        one_line_failure(dsfs("dataset", "resync", "team/data", "-m", mount.mountpoint), "403")
        server.always(path, as_html if path.endswith("/") else give)
    server.always("/data/lost+found/", refuse)
    assert (mount.root / "lost+found/c.txt").read_bytes() == b"third"
    assert mount.dataset()["revision"] == revision


def test_the_next_server_knows_and_so_does_the_next_mount(mounts: Mounts, server: web.Hostile) -> None:
    mount = mount_all_but_two(mounts, server)
    mount.kill_server()
    for path in ("lost+found", "private.txt"):
        assert errno_of(lambda path=path: os.listdir(mount.root / path)) == errno.EACCES
    assert "2 names" in mount.dataset()["message"]
    assert mount.unmount().returncode == 0
    manifest = Path(mounts.directory / "m.yaml")
    again = mounts.mount("-f", manifest, cache_dir=mount.cache_dir, dataset="team/data")
    again.expect_log("lookup|readdir|opendir")
    again.wait_phase("READY")
    assert errno_of(lambda: os.listdir(again.root / "lost+found")) == errno.EACCES


def test_where_nothing_may_be_read_the_dataset_has_failed(mounts: Mounts, server: web.Hostile) -> None:
    uri = put_tree(server, {name: data for name, data in FILES.items() if "/" not in name})
    for name in FILES:
        server.always(f"/data/{name}", refuse)
    mount = mount_tree(mounts, uri)
    mount.expect_log("listing failed")
    assert "403" in mount.wait_phase("FAILED")["message"]
