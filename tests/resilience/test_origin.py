"""Origins that die, stall, change: right bytes, or an errno that tells the cause, in bounded time."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.manifests import dataset, write_manifests
from tests.mounts import Mounts, eventually
from tests.pages import drop_pages
from tests.resilience.conftest import DIRECT, MIB, Web, errno_of_read, make_tree, mount_path
from tests.servers import hostile as web
from tests.servers.web_tree import put_tree

READ_TIMEOUT_S = 2  # waited for by each read that must fail here
SLACK_S = 30  # of a machine that does much else
PATHS = (*DIRECT, "pyfuse3")


@pytest.mark.parametrize("path", PATHS)
def test_origin_dies_and_comes_back(mounts: Mounts, web_origin: Web, path: str) -> None:
    source = make_tree(web_origin.root / "data", files=12)
    mount = mount_path(mounts, path, f"{web_origin.url}data/", f"--read-timeout={READ_TIMEOUT_S}s", type="HTTP")
    mount.wait_phase("READY")
    mount.expect_log("fetch failed")
    cached, absent = "d1/f001", "d2/f002"
    data = (source / cached).read_bytes()
    assert (mount.root / cached).read_bytes() == data
    web_origin.kill()
    drop_pages(mount.root / cached)
    assert (mount.root / cached).read_bytes() == data
    for directory in ("", "d1", "d3"):
        assert sorted(os.listdir(mount.root / directory)) == sorted(os.listdir(source / directory))
    assert (mount.root / absent).stat().st_size == (source / absent).stat().st_size
    assert not (mount.root / "d1/none").exists()  # known for certain: the revision is sealed
    for name in (absent, "large"):
        started = time.monotonic()
        assert errno_of_read(mount.root / name) in (errno.EIO, errno.ETIMEDOUT)
        assert time.monotonic() - started < READ_TIMEOUT_S + SLACK_S
    assert mount.dataset()["message"]
    assert os.getxattr(mount.root / "d1", "user.dsfs.error")
    web_origin.start_again()
    for name in (absent, "large"):
        assert (mount.root / name).read_bytes() == (source / name).read_bytes()
    assert mount.dataset()["message"] == ""


@pytest.mark.parametrize("path", ["passthrough", "pyfuse3"])
def test_mounted_while_the_origin_is_gone(mounts: Mounts, web_origin: Web, path: str) -> None:
    """The last revision is shown, with what is cached of it."""
    source = make_tree(web_origin.root / "data", files=8)
    first = mount_path(mounts, path, f"{web_origin.url}data/", type="HTTP")
    revision = first.wait_phase("READY")["revision"]
    data = (source / "d1/f001").read_bytes()
    assert (first.root / "d1/f001").read_bytes() == data
    assert first.unmount().returncode == 0
    web_origin.kill()
    flags = (f"{web_origin.url}data/", f"--read-timeout={READ_TIMEOUT_S}s")
    again = mount_path(mounts, path, *flags, type="HTTP", cache_dir=first.cache_dir)
    again.expect_log("its last revision is shown|fetch failed|listing failed")
    found = again.wait_phase("READY")
    assert found["revision"] == revision
    assert revision in found["message"]
    assert (again.root / "d1/f001").read_bytes() == data
    assert sorted(os.listdir(again.root)) == sorted(os.listdir(source))
    assert errno_of_read(again.root / "d2/f002") in (errno.EIO, errno.ETIMEDOUT)
    again.expect_log("resync failed")
    (source / "d1/new").write_bytes(b"came meanwhile")
    web_origin.start_again()
    eventually(lambda: "new" in os.listdir(again.root / "d1"), 60, "it is listed without being asked")
    eventually(lambda: again.dataset()["message"] == "", 10, "it is well again")
    assert (again.root / "d1/new").read_bytes() == b"came meanwhile"


def index(*names: str) -> bytes:
    return b"<h1>Index of /</h1>" + b"".join(f'<a href="{name}">{name}</a>'.encode() for name in names)


def as_html(asked: web.Asked, data: bytes, answer: web.Answer) -> web.Answer:
    return answer.with_headers(Content_Type="text/html")


@pytest.mark.parametrize("path", ["daemon", "pyfuse3"])
@pytest.mark.parametrize("fault", [web.status(500), web.status(403), web.stall_at_once], ids=["500", "403", "stall"])
def test_not_reachable_is_never_not_there(mounts: Mounts, path: str, fault: web.Behaviour) -> None:
    """A directory that cannot be listed, and names in it; the parts that could be listed stay."""
    with web.hostile() as server:
        server.files |= {"/data/": index("../", "good/", "bad/"), "/data/good/": index("../", "a")}
        server.files |= {"/data/bad/": index("../", "b"), "/data/good/a": b"good", "/data/bad/b": b"bad"}
        server.files |= {"/data/bad/none/": b""} if fault is web.stall_at_once else {}
        for directory in ("/data/", "/data/good/"):
            server.always(directory, as_html)
        for trouble in ("/data/bad/", "/data/bad/b"):
            server.always(trouble, fault)
        for trouble in ("/data/bad/none", "/data/bad/none/"):  # a head without a body would say what is there
            server.always(trouble, web.silence if fault is web.stall_at_once else fault)
        # the whole crawl takes as long as this server lets it; the mount does not
        flags = (f"{server.url}data/", f"--read-timeout={READ_TIMEOUT_S}s")
        mount = mount_path(mounts, path, *flags, type="HTTP")
        mount.expect_log("listing failed|fetch failed")
        assert (mount.root / "good/a").read_bytes() == b"good"
        allowed = (errno.EACCES,) if _is_403(fault) else (errno.EIO, errno.ETIMEDOUT)
        for call in (
            lambda: os.listdir(mount.root / "bad"),
            lambda: (mount.root / "bad/b").read_bytes(),
            lambda: (mount.root / "bad/none").read_bytes(),
        ):
            started = time.monotonic()
            code = _errno(call)
            assert code in allowed, errno.errorcode.get(code)
            assert time.monotonic() - started < READ_TIMEOUT_S + SLACK_S
        assert sorted(os.listdir(mount.root)) == ["bad", "good"]
        server.always("/data/bad/", as_html)
        for trouble in ("/data/bad/b", "/data/bad/none", "/data/bad/none/"):
            server.always(trouble, lambda asked, data, answer: answer)
        assert eventually(lambda: _errno(lambda: os.listdir(mount.root / "bad")) == 0, 30, "it heals")
        assert (mount.root / "bad/b").read_bytes() == b"bad"
        assert not (mount.root / "bad/none").exists()


def _is_403(fault: web.Behaviour) -> bool:
    asked = web.Asked("GET", "/", {}, None)
    return fault(asked, b"", web.good(asked, b"")).status == 403


def _errno(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


@contextmanager
def waiting_reader(mounts: Mounts, path: str) -> Iterator[subprocess.Popen[bytes]]:
    """It waits for the origin inside of the block; when it has ended, the others have lost nothing by that."""
    with web.hostile() as server:
        server.files["/file"] = os.urandom(100_000)
        mount = mount_path(mounts, path, f"{server.url}file", "--read-timeout=40s", type="HTTP")
        mount.expect_log("fetch failed")
        gate = server.gate("/file", 10)
        with subprocess.Popen(["cat", mount.root / "file"], stdout=subprocess.DEVNULL) as reader:
            try:
                assert gate.reached.wait(20), "the reader waits for the origin"
                yield reader
            finally:
                gate.open()
        assert (mount.root / "file").read_bytes() == server.files["/file"]


@pytest.mark.parametrize(
    ("path", "number"),
    [*((path, signal.SIGKILL) for path in DIRECT), ("openless", signal.SIGINT), ("passthrough", signal.SIGTERM)],
)
def test_a_reader_that_waits_can_be_ended(mounts: Mounts, path: str, number: signal.Signals) -> None:
    with waiting_reader(mounts, path) as reader:
        started = time.monotonic()
        reader.send_signal(number)
        assert reader.wait(10) == -number
        assert time.monotonic() - started < 15


@pytest.mark.parametrize("path", DIRECT)
def test_a_reader_that_was_stopped_before_can_be_ended_too(mounts: Mounts, path: str) -> None:
    """The kernel tells of the first signal alone, and that one is none that ends it."""
    with waiting_reader(mounts, path) as reader:
        reader.send_signal(signal.SIGTSTP)
        time.sleep(0.3)  # the kernel has told of it
        reader.kill()
        assert reader.wait(20) == -signal.SIGKILL


def test_cold_readers_that_wait_do_not_hold_up_cached_ones(mounts: Mounts) -> None:
    """Read-ahead is asked for in the background, and the kernel lets only so much of that be under way."""
    cold = [f"cold{number:03d}" for number in range(100)]
    with web.hostile() as server:
        cached = os.urandom(4 * MIB)
        uri = put_tree(server, {**dict.fromkeys(cold, bytes(2 * MIB)), "cached": cached})
        mount = mount_path(mounts, "openless", uri, "--read-timeout=20s", type="HTTP")
        mount.expect_log("fetch failed")
        mount.wait_phase("READY")
        assert (mount.root / "cached").read_bytes() == cached
        eventually(lambda: mount.dataset()["cached_bytes"] == len(cached), 20, "it is cached")
        drop_pages(mount.root / "cached")
        for name in cold:
            server.always(f"/data/{name}", web.stall_at_once)
        with ThreadPoolExecutor(len(cold)) as pool:
            waiting = [pool.submit(errno_of_read, mount.root / name) for name in cold]
            eventually(lambda: mount.sum_of("dsfs_waiting_requests") >= 64, 10, "they wait")
            assert (mount.root / "cached").read_bytes() == cached
            assert not any(reader.done() for reader in waiting)
            assert {reader.result() for reader in waiting} == {errno.ETIMEDOUT}


def test_a_reader_that_waits_through_pyfuse3_ends_with_the_read_timeout(mounts: Mounts) -> None:
    """pyfuse3 does not tell of INTERRUPT, and the kernel lets nobody go whose request is being answered: who was killed
    is gone when the time for the answer is over."""
    with web.hostile() as server:
        server.files["/file"] = os.urandom(100_000)
        flag = f"--read-timeout={READ_TIMEOUT_S}s"
        mount = mount_path(mounts, "pyfuse3", f"{server.url}file", flag, type="HTTP")
        mount.expect_log("fetch failed")
        gate = server.gate("/file", 10)
        with subprocess.Popen(["cat", mount.root / "file"], stdout=subprocess.DEVNULL) as reader:
            try:
                assert gate.reached.wait(20), "the reader waits for the origin"
                reader.kill()
                assert reader.wait(20) == -signal.SIGKILL
            finally:
                gate.open()


@pytest.mark.parametrize("path", PATHS)
def test_a_stalled_origin_ends_in_a_timeout(mounts: Mounts, path: str) -> None:
    with web.hostile() as server:
        server.files["/file"] = os.urandom(100_000)
        mount = mount_path(mounts, path, f"{server.url}file", f"--read-timeout={READ_TIMEOUT_S}s", type="HTTP")
        mount.expect_log("fetch failed")
        mount.wait_phase("READY")
        server.always("/file", web.stall_at_once)
        mount.expect_log("resync failed")
        started = time.monotonic()
        assert errno_of_read(mount.root / "file") == errno.ETIMEDOUT
        assert READ_TIMEOUT_S - 1 < time.monotonic() - started < READ_TIMEOUT_S + SLACK_S
        assert os.getxattr(mount.root / "file", "user.dsfs.error")
        server.always("/file", lambda asked, data, answer: answer)
        eventually(lambda: errno_of_read(mount.root / "file") == 0, 5, "it heals")
        assert (mount.root / "file").read_bytes() == server.files["/file"]


@pytest.mark.parametrize("path", ["daemon", "pyfuse3"])
def test_an_origin_that_has_never_answered_holds_nobody_up_for_longer(mounts: Mounts, path: str) -> None:
    """Who looks at names is told in time too, from the first moment on."""
    with web.hostile() as server:
        server.always("/data/", web.stall_at_once)
        server.files["/data/"] = b""
        mount = mount_path(mounts, path, f"{server.url}data/", f"--read-timeout={READ_TIMEOUT_S}s", type="HTTP")
        mount.expect_log("listing failed")
        for look in (lambda: os.listdir(mount.root), lambda: os.stat(mount.root / "file")):
            started = time.monotonic()
            with pytest.raises(TimeoutError):
                look()
            assert time.monotonic() - started < READ_TIMEOUT_S + SLACK_S


@pytest.mark.parametrize("path", ["passthrough", "daemon"])
def test_many_readers_of_a_stalled_origin_do_not_wait_for_each_other(mounts: Mounts, path: str) -> None:
    """More than are fetched at once: also who has no turn to ask is told in time, be it at open or at read."""
    names = [f"f{number:03d}" for number in range(300)]
    with web.hostile() as server:
        uri = put_tree(server, dict.fromkeys(names, bytes(2000)))
        mount = mount_path(mounts, path, uri, f"--read-timeout={READ_TIMEOUT_S}s", type="HTTP")
        mount.expect_log("fetch failed")
        mount.wait_phase("READY")
        for name in names:
            server.always(f"/data/{name}", web.stall_at_once)
        started = time.monotonic()
        with ThreadPoolExecutor(len(names)) as pool:
            assert set(pool.map(lambda name: errno_of_read(mount.root / name), names)) == {errno.ETIMEDOUT}
        assert time.monotonic() - started < READ_TIMEOUT_S + SLACK_S


def test_a_server_that_hangs_holds_up_no_other(mounts: Mounts) -> None:
    """Though more wait for it, of several datasets, than is fetched at once."""
    names = [f"f{number:03d}" for number in range(40)]
    hung = [f"hung{number}" for number in range(5)]
    with web.hostile() as server, web.hostile() as healthy:
        good = dataset("good", put_tree(healthy, dict.fromkeys(names, bytes(2000))), "team", type="HTTP")
        bad = [
            dataset(each, put_tree(server, dict.fromkeys(names, bytes(2000)), f"/{each}/"), "team", type="HTTP")
            for each in hung
        ]
        manifests = write_manifests(mounts.directory / "m.yaml", good, *bad)
        mount = mounts.mount("-f", manifests, "--read-timeout=30s")
        mount.expect_log("fetch failed")
        for each in ("good", *hung):
            mount.wait_phase("READY", each)
        files = [mount.mountpoint / "team" / each / name for each in hung for name in names]
        for each in hung:
            for name in names:
                server.always(f"/{each}/{name}", web.stall_at_once)
        with ThreadPoolExecutor(len(files)) as pool:
            waiting = [pool.submit(errno_of_read, file) for file in files]
            eventually(lambda: mount.sum_of("dsfs_waiting_requests") >= len(files), 25, "they wait")
            for name in names:
                assert (mount.mountpoint / "team/good" / name).read_bytes() == bytes(2000)
            assert not any(reader.done() for reader in waiting)
            assert {reader.result() for reader in waiting} == {errno.ETIMEDOUT}


SIZE = 96 * MIB  # more than is asked ahead of any reader
OLD, NEW = (random.Random(seed).randbytes(SIZE) for seed in (1, 2))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["directory", "http"])
def test_a_file_that_changes_under_a_reader_is_never_mixed(
    mounts: Mounts, tmp_path: Path, path: str, kind: str
) -> None:
    """The promise: bytes of one revision, or ESTALE."""
    small_cache = "--cache-size=160MiB"  # too small for the rest to be brought in while this test waits for its disk
    with web.hostile() as server:
        if kind == "http":
            server.files["/file"] = OLD
            mount = mount_path(mounts, path, f"{server.url}file", small_cache, type="HTTP")
        else:
            (tmp_path / "source").mkdir()
            (tmp_path / "source/file").write_bytes(OLD)
            mount = mount_path(mounts, path, tmp_path / "source", small_cache)
        mount.wait_phase("READY")
        mount.expect_log("fetch failed|resync failed")
        seen = bytearray()
        code = 0
        with open(mount.root / "file", "rb", buffering=0) as file:
            seen += file.read(MIB)
            if kind == "http":
                server.files["/file"] = NEW
            else:
                (tmp_path / "source/file").write_bytes(NEW)
            try:
                while piece := file.read(MIB):
                    seen += piece
            except OSError as error:
                code = error.errno or -1
        assert seen == OLD[: len(seen)]
        assert code == errno.ESTALE, "the rest was not read ahead"
        # whoever opens it now: ESTALE until it is listed anew, then the new version
        code = errno_of_read(mount.root / "file")
        assert code in (0, errno.ESTALE)
        assert code or (mount.root / "file").read_bytes() == NEW


@pytest.mark.parametrize("size", [100_000, 3 * MIB])
@pytest.mark.parametrize("path", PATHS)
def test_a_file_that_has_changed_is_listed_anew_once_it_is_opened(mounts: Mounts, path: str, size: int) -> None:
    with web.hostile() as server:
        uri = put_tree(server, {"file": bytes(size), "other": bytes(size)})
        mount = mount_path(mounts, path, uri, type="HTTP")
        mount.wait_phase("READY")
        mount.expect_log("fetch failed")
        server.files["/data/file"] = b"x" * size
        assert errno_of_read(mount.root / "file") in (0, errno.ESTALE)
        eventually(lambda: errno_of_read(mount.root / "file") == 0, 20, "the next revision is shown")
        assert (mount.root / "file").read_bytes() == b"x" * size


@pytest.mark.parametrize("path", PATHS)
def test_what_is_refused_keeps_nothing_else_from_being_read(mounts: Mounts, path: str) -> None:
    with web.hostile() as server:
        uri = put_tree(server, {"sub/file": b"data", "refused": b"secret", "closed/file": b"secret"})
        for name in ("refused", "closed/"):
            server.always(f"/data/{name}", web.status(403))
        mount = mount_path(mounts, path, uri, type="HTTP")
        assert (mount.root / "sub/file").read_bytes() == b"data"
        assert errno_of_read(mount.root / "refused") == errno.EACCES
        with pytest.raises(PermissionError):
            os.listdir(mount.root / "closed")
        assert "403" in mount.dataset()["message"]


@pytest.mark.parametrize("path", DIRECT)
def test_a_cached_file_that_changes_stays_what_it_was(mounts: Mounts, tmp_path: Path, path: str) -> None:
    """A revision is immutable: what is here of it is shown until a resync."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_bytes(b"old" * 10_000)
    mount = mount_path(mounts, path, tmp_path / "source")
    assert (mount.root / "file").read_bytes() == b"old" * 10_000
    (tmp_path / "source/file").write_bytes(b"newer" * 10_000)
    drop_pages(mount.root / "file")
    assert (mount.root / "file").read_bytes() == b"old" * 10_000
    assert mount.unmount().returncode == 0
    again = mount_path(mounts, path, tmp_path / "source", cache_dir=mount.cache_dir)
    assert (again.root / "file").read_bytes() == b"newer" * 10_000
