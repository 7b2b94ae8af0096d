"""/metrics: every name of DESIGN section 7 is there, and moves with what it counts."""

from __future__ import annotations

import json
import os
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.manifests import dataset, write_manifests
from tests.mounts import Mounts, dsfs, eventually
from tests.pages import drop_pages
from tests.servers import hostile as web
from tests.servers.web_tree import gets, put_tree

# name → labels; a histogram has _bucket, _sum and _count
DESIGNED = {
    "dsfs_read_bytes_total": {"namespace", "dataset", "tier"},
    "dsfs_kernel_opened_bytes_total": {"namespace", "dataset"},
    "dsfs_origin_read_bytes_total": {"namespace", "dataset"},
    "dsfs_origin_requests_total": {"namespace", "dataset", "outcome"},
    "dsfs_origin_request_seconds_count": {"namespace", "dataset"},
    "dsfs_operation_seconds_count": {"operation"},
    "dsfs_errors_total": {"namespace", "dataset", "errno"},
    "dsfs_cache_bytes": {"tier"},
    "dsfs_cache_limit_bytes": {"tier"},
    "dsfs_cache_evicted_bytes_total": set(),
    "dsfs_cache_corrupt_blocks_total": set(),
    "dsfs_dataset_info": {"namespace", "dataset", "revision", "phase", "source_type"},
    "dsfs_dataset_bytes": {"namespace", "dataset"},
    "dsfs_dataset_cached_bytes": {"namespace", "dataset"},
    "dsfs_server_restarts_total": set(),
    # and what DESIGN does not name
    "dsfs_waiting_requests": {"namespace", "dataset"},
    "dsfs_oldest_request_seconds": {"namespace", "dataset"},
    "dsfs_dataset_pinned_bytes": {"namespace", "dataset"},
    "dsfs_dataset_listed_timestamp_seconds": {"namespace", "dataset"},
    "dsfs_dataset_resync_failures": {"namespace", "dataset"},
    "dsfs_cache_pinned_bytes": set(),
    "dsfs_manifests_trouble": set(),
    "dsfs_build_info": {"version", "session"},
    "process_resident_memory_bytes": set(),
    "dsfs_cache_device_read_bytes_total": {"device"},
    "dsfs_cache_device_written_bytes_total": {"device"},
    "dsfs_open_overflows_total": set(),
    "dsfs_cache_scrubbed_bytes_total": set(),
    "dsfs_cache_scrub_rounds_total": set(),
}
LARGE = os.urandom(12_000_077)


def test_every_designed_metric_is_there_and_moves(mounts: Mounts, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    with web.hostile() as server:
        server.files["/file"] = data
        manifest = write_manifests(
            tmp_path / "m.yaml", dataset("data", f"{server.url}file", "team", type="HTTP", readPath="passthrough")
        )
        mount = mounts.mount("-f", manifest, "--read-timeout=5s", "--cache-size=1GiB", dataset="team/data")
        labels = {"namespace": "team", "dataset": "data"}
        fd = os.open(mount.root / "file", os.O_RDONLY)
        assert os.pread(fd, len(data), 0) == data
        os.close(fd)
        assert mount.sum_of("dsfs_kernel_opened_bytes_total", **labels) == len(data)
        assert mount.sum_of("dsfs_origin_read_bytes_total", **labels) == len(data)
        assert mount.sum_of("dsfs_origin_requests_total", outcome="ok", **labels) >= 1
        assert mount.sum_of("dsfs_origin_request_seconds_count", **labels) >= 1
        assert mount.sum_of("dsfs_operation_seconds_count", operation="open") == 1
        eventually(lambda: mount.sum_of("dsfs_cache_bytes", tier="node") >= len(data), 10, "the cache is measured")
        assert mount.sum_of("dsfs_cache_limit_bytes", tier="node") == mount.status()["cache_size"]
        assert mount.sum_of("dsfs_dataset_info", phase="READY", source_type="HTTP", **labels) == 1
        assert mount.sum_of("dsfs_dataset_info", **labels) == 1
        assert mount.sum_of("dsfs_dataset_bytes", **labels) == len(data)
        assert len(data) <= mount.sum_of("dsfs_dataset_cached_bytes", **labels) <= len(data) + 8192
        # a failure
        assert mount.unmount().returncode == 0
        server.always("/file", web.status(403))
    samples = mount_and_see_errors(mounts, tmp_path)
    found = {}
    for name in samples:
        base, _, rest = name.partition("{")
        found[base] = set(re.findall(r'(\w+)="', rest))
    for name, wanted in DESIGNED.items():
        assert name in found, name
        assert found[name] == wanted, name


@pytest.mark.parametrize("path", ["openless", "daemon", "pyfuse3"])
def test_what_is_read_counts_for_where_it_came_from(mounts: Mounts, tmp_path: Path, path: str) -> None:
    files = {f"d{number}/f": os.urandom(30_000 + number) for number in range(6)}
    total = sum(map(len, files.values()))
    session, spec = ("pyfuse3", {}) if path == "pyfuse3" else ("direct", {"readPath": path})
    with web.hostile() as server:
        manifest = write_manifests(tmp_path / "m.yaml", dataset("data", put_tree(server, files), type="HTTP", **spec))
        mount = mounts.mount("-f", manifest, session=session, dataset="default/data")
        mount.wait_phase("READY")
        for name, data in files.items():
            assert (mount.root / name).read_bytes() == data
        assert mount.sum_of("dsfs_read_bytes_total", tier="origin") == total
        assert mount.sum_of("dsfs_read_bytes_total", tier="node") == 0
        for name, data in files.items():
            drop_pages(mount.root / name)
            assert (mount.root / name).read_bytes() == data
        assert mount.sum_of("dsfs_read_bytes_total", tier="origin") == total
        assert mount.sum_of("dsfs_read_bytes_total", tier="node") == total
        assert set(gets(server).values()) == {1}


def mount_and_see_errors(mounts: Mounts, tmp_path: Path) -> dict[str, float]:
    """A dataset whose file changes under it, is evicted, and whose server is restarted."""
    source = tmp_path / "changing"
    source.mkdir()
    (source / "gone").write_bytes(b"1" * 100_000)
    (source / "kept").write_bytes(b"2" * 100_000)
    manifest = write_manifests(tmp_path / "m2.yaml", dataset("data", source, "team", readPath="daemon"))
    mount = mounts.mount("-f", manifest, dataset="team/data")
    mount.expect_log("fetch failed")
    assert (mount.root / "kept").read_bytes() == b"2" * 100_000
    assert mount.sum_of("dsfs_read_bytes_total", tier="origin") + mount.sum_of("dsfs_read_bytes_total", tier="node") > 0
    (source / "gone").write_bytes(b"3" * 50_000)
    with pytest.raises(OSError, match="Stale file handle"):
        (mount.root / "gone").read_bytes()
    assert mount.sum_of("dsfs_errors_total", namespace="team", dataset="data", errno="ESTALE") >= 1
    assert mount.sum_of("dsfs_origin_requests_total", outcome="changed") >= 1
    assert b"not the file" in os.getxattr(mount.root / "gone", "user.dsfs.error")
    samples = mount.metrics()
    assert samples["dsfs_server_restarts_total"] == 0
    mount.kill_server()
    eventually(lambda: answers(mount.http), 20, "the next server serves metrics")
    assert mount.metrics()["dsfs_server_restarts_total"] == 1
    return samples


def answers(http: str | None) -> bool:
    try:
        with urllib.request.urlopen(f"http://{http}/healthz", timeout=5) as answer:
            return bool(json.load(answer)["healthy"])
    except (urllib.error.URLError, OSError):
        return False


def near(count: float, truth: float) -> bool:
    return abs(count - truth) <= truth / 100


def read_whole(path: Path) -> int:
    """The bytes of a file, out of no page cache that was there before."""
    fd = os.open(path, os.O_RDONLY)
    try:
        drop_pages(fd)
        found = 0
        while piece := os.read(fd, 1 << 20):
            assert piece == LARGE[found : found + len(piece)]
            found += len(piece)
    finally:
        os.close(fd)
    return found


@pytest.mark.parametrize("path", ["daemon", "openless", "passthrough", "pyfuse3"])
def test_bytes_agree_with_an_outside_count(mounts: Mounts, tmp_path: Path, path: str) -> None:
    """To 1 %: what came over the wire by the server's count, what was read by the reader's."""
    labels = {"namespace": "team", "dataset": "data"}
    session, spec = ("pyfuse3", {}) if path == "pyfuse3" else ("direct", {"readPath": path})
    with web.hostile() as server:
        server.files["/file"] = LARGE
        manifest = write_manifests(
            tmp_path / "m.yaml", dataset("data", f"{server.url}file", "team", type="HTTP", **spec)
        )
        mount = mounts.mount("-f", manifest, session=session, dataset="team/data")
        mount.wait_phase("READY")
        listed_bytes, listed = server.sent_bytes["/file"], len(server.asked)
        read = read_whole(mount.root / "file")
        assert near(mount.sum_of("dsfs_read_bytes_total", **labels), read)
        eventually(lambda: mount.dataset()["cached_bytes"] == len(LARGE), 10, "all of it is here")
        assert near(mount.sum_of("dsfs_origin_read_bytes_total", **labels), server.sent_bytes["/file"] - listed_bytes)
        eventually(lambda: any(asked.method == "HEAD" for asked in server.asked[listed:]), 10, "its hash is asked for")
        requests = sum(asked.method == "GET" for asked in server.asked[listed:])
        eventually(
            lambda: (
                mount.sum_of("dsfs_origin_requests_total", outcome="ok", **labels) == 1 + len(server.asked) - listed
            ),
            10,
            "the listing is counted, and a HEAD for the hash",
        )
        assert mount.sum_of("dsfs_origin_request_seconds_count", **labels) == requests
        for _round in range(3):
            read += read_whole(mount.root / "file")
        kernel = mount.sum_of("dsfs_kernel_opened_bytes_total", **labels)
        assert near(mount.sum_of("dsfs_read_bytes_total", **labels) + kernel, read)
        assert kernel == (3 * len(LARGE) if path == "passthrough" else 0)
        assert near(mount.sum_of("dsfs_dataset_cached_bytes", **labels), len(LARGE))


def test_what_is_deleted_is_not_counted_any_more(mounts: Mounts, source: Path, tmp_path: Path) -> None:
    manifest = write_manifests(tmp_path / "m.yaml", dataset("kept", source, "team"), dataset("gone", source, "team"))
    mount = mounts.mount("-f", manifest)
    assert mount.sum_of("dsfs_dataset_info", dataset="gone") == 1
    assert dsfs("dataset", "delete", "team/gone", "-m", mount.mountpoint).returncode == 0
    gauges = [name for name in mount.metrics() if name.startswith("dsfs_dataset_") and 'dataset="gone"' in name]
    assert gauges == []
    assert mount.sum_of("dsfs_dataset_info", dataset="kept") == 1


@pytest.mark.parametrize("session", ["direct", "pyfuse3"])
def test_reads_that_wait_are_seen(mounts: Mounts, tmp_path: Path, session: str) -> None:
    labels = {"namespace": "team", "dataset": "data"}
    with web.hostile() as server:
        server.files["/file"] = LARGE
        manifest = write_manifests(tmp_path / "m.yaml", dataset("data", f"{server.url}file", "team", type="HTTP"))
        mount = mounts.mount("-f", manifest, session=session, dataset="team/data")
        mount.wait_phase("READY")
        assert mount.sum_of("dsfs_waiting_requests", **labels) == 0
        gate = server.gate("/file", 0)
        reader = threading.Thread(target=read_whole, args=[mount.root / "file"])
        reader.start()
        assert gate.reached.wait(20)
        eventually(lambda: mount.sum_of("dsfs_oldest_request_seconds", **labels) > 0.5, 20, "somebody waits")
        assert mount.sum_of("dsfs_waiting_requests", **labels) >= 1
        gate.open()
        reader.join()
        eventually(lambda: mount.sum_of("dsfs_waiting_requests", **labels) == 0, 20, "nobody waits any more")
        assert mount.sum_of("dsfs_oldest_request_seconds", **labels) == 0


def test_what_is_not_visible_any_more_is_not_told(mounts: Mounts, source: Path, tmp_path: Path) -> None:
    shared = write_manifests(tmp_path / "m.yaml", dataset("data", source, "owner", share=True))
    mount = mounts.mount("-f", shared, "--namespace=team")
    eventually(lambda: mount.sum_of("dsfs_dataset_info", namespace="owner") == 1, 20, "it is there")
    write_manifests(shared, dataset("data", source, "owner"))
    assert dsfs("dataset", "apply", "-f", shared, "-m", mount.mountpoint).returncode == 0
    eventually(lambda: mount.sum_of("dsfs_dataset_info", namespace="owner") == 0, 20, "it is gone")
    assert mount.sum_of("dsfs_dataset_bytes", namespace="owner") == 0


def test_evicted_bytes_are_counted(mounts: Mounts, source: Path) -> None:
    """`--cache-size` covers all that is in the cache directory, so a small one makes room by itself."""
    for number in range(8):
        (source / f"big{number}").write_bytes(os.urandom(2_000_000))
    mount = mounts.mount(source, "--cache-size=8MiB")
    for number in range(8):
        assert (mount.root / f"big{number}").read_bytes() == (source / f"big{number}").read_bytes()
    eventually(lambda: mount.sum_of("dsfs_cache_evicted_bytes_total") > 0, 10, "eviction")
    eventually(lambda: mount.look()["cache_used"] <= 8 << 20, 10, "the cache is within its size")
    on_disk = sum(map(space_of, mount.cache_dir.rglob("*")))
    assert on_disk <= (8 << 20) + (2 << 20), "what is on the disk, and some for directories and the index"


def space_of(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:  # evicted just now
        return 0


def test_public_interface_changes_nothing(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source, "--cache-size=1GiB")
    mount.wait_phase("READY")
    with urllib.request.urlopen(f"http://{mount.http}/api/v1/status", timeout=5) as answer:
        assert json.load(answer) == mount.status()
    with urllib.request.urlopen(f"http://{mount.http}/api/v1/stats", timeout=5) as answer:
        assert json.load(answer)["mountpoint"] == str(mount.mountpoint)
    for path in ("evict", "verify"):
        request = urllib.request.Request(f"http://{mount.http}/api/v1/{path}", data=b"{}", method="POST")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(request, timeout=5)


def test_page_needs_nothing_from_elsewhere(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source)
    with urllib.request.urlopen(f"http://{mount.http}/", timeout=5) as answer:
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        page = answer.read().decode()
    assert re.findall(r"https?://[^\"]+", page) == ["http://www.w3.org/2000/svg"], (
        "the name of SVG, which is not fetched"
    )
    for path in re.findall(r'href="(/[^"]*)"', page):
        with urllib.request.urlopen(f"http://{mount.http}{path}", timeout=5) as answer:
            assert answer.status == 200, path
    request = urllib.request.Request(f"http://{mount.http}/", data=b"{}", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(request, timeout=5)
