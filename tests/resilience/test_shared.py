"""One cache for a cluster: several daemons, each with a cache directory of its own, over one shared directory."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import one_line_failure
from tests.manifests import dataset, write_manifests
from tests.mounts import Mount, Mounts, dsfs, eventually
from tests.pages import drop_pages
from tests.resilience.conftest import MIB
from tests.servers import hostile as web

LARGE = random.Random(1).randbytes(40 * MIB + 77)
SMALL = {f"f{number:02d}": random.Random(number).randbytes(40_000 + 7919 * number) for number in range(20)}
FILES = {"large": LARGE, **SMALL}
TOTAL = sum(map(len, FILES.values()))


@pytest.fixture
def origin() -> Iterator[web.Hostile]:
    """A directory index with one large file and small ones."""
    with web.hostile() as server:
        server.files["/data/"] = "".join(f'<a href="{name}">{name}</a>' for name in FILES).encode()
        server.always("/data/", lambda _asked, _data, answer: answer.with_headers(Content_Type="text/html"))
        server.files.update({f"/data/{name}": data for name, data in FILES.items()})
        yield server


def manifest(directory: Path, origin: web.Hostile, namespace: str = "team", **spec: object) -> Path:
    """``<namespace>/data``."""
    document = dataset("data", f"{origin.url}data/", namespace, "HTTP", readPath="daemon", **spec)
    return write_manifests(directory / f"{namespace}.yaml", document)


def probes(directory: Path, origin: web.Hostile) -> Path:
    """``team/data``, and each small file once more as ``probe/<name>``: alone in its dataset, it is fetched when it is
    read and not ahead with its neighbours."""
    origin.files.update({f"/probe/{name}/{name}": data for name, data in SMALL.items()})
    for name in SMALL:
        origin.files[f"/probe/{name}/"] = f'<a href="{name}">{name}</a>'.encode()
        origin.always(f"/probe/{name}/", lambda _asked, _data, answer: answer.with_headers(Content_Type="text/html"))
    alone = [dataset(name, f"{origin.url}probe/{name}/", "probe", "HTTP", readPath="daemon") for name in SMALL]
    data = dataset("data", f"{origin.url}data/", "team", "HTTP", readPath="daemon")
    return write_manifests(directory / "probes.yaml", data, *alone)


def cluster(mounts: Mounts, number: int, shared: Path, manifest: Path, *flags: str) -> list[Mount]:
    """So many nodes."""
    return [
        mounts.mount("-f", manifest, f"--shared-cache={shared}", *flags, dataset="team/data") for _ in range(number)
    ]


# Reads files and says how long it took; exits with a line when a byte is wrong. A process each: a reader that waits in
# the kernel must not hold this interpreter's lock.
_READ = """
import hashlib, sys
for path, wanted in zip(sys.argv[1::2], sys.argv[2::2]):
    with open(path, "rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    assert got == wanted, path
"""


_READ_AT = """
import os, sys
assert os.pread(os.open(sys.argv[1], os.O_RDONLY), 1000, int(sys.argv[2]))
"""


def read_at(mount: Mount, offset: int) -> bytes:
    """1 MiB of the large file."""
    fd = os.open(mount.root / "large", os.O_RDONLY)
    try:
        return os.pread(fd, MIB, offset)
    finally:
        os.close(fd)


def reading(mount: Mount, *names: str) -> subprocess.Popen[str]:
    """All files, or these."""
    argv = []
    for name in names or FILES:
        argv += [str(mount.root / name), hashlib.sha256(FILES[name]).hexdigest()]
    return subprocess.Popen([sys.executable, "-c", _READ, *argv], stderr=subprocess.PIPE, text=True)


def finished(*readers: subprocess.Popen[str]) -> None:
    for reader in readers:
        _out, said = reader.communicate(timeout=50)
        assert reader.returncode == 0, said


def sent(origin: web.Hostile) -> int:
    return sum(count for path, count in origin.sent_bytes.items() if path != "/data/")


def files_of(shared: Path) -> list[Path]:
    """What nodes have put there."""
    return [path for path in shared.glob("p*/**/*") if path.is_file()]


def leases(shared: Path) -> list[Path]:
    return [path for path in files_of(shared) if path.name.endswith(".lease")]


def is_quiet(shared: Path) -> bool:
    """Whether no node puts anything there now."""
    return not [path for path in files_of(shared) if path.name.endswith((".lease", ".new"))]


def test_the_origin_sends_each_byte_about_once(mounts: Mounts, tmp_path: Path, origin: web.Hostile) -> None:
    shared = tmp_path / "shared"
    nodes = cluster(mounts, 4, shared, manifest(tmp_path, origin))
    finished(*(reading(node) for node in nodes))
    assert TOTAL <= sent(origin) <= 1.1 * TOTAL
    fetched = [node.sum_of("dsfs_origin_read_bytes_total") for node in nodes]
    taken = [node.sum_of("dsfs_shared_read_bytes_total") for node in nodes]
    for each, other in zip(fetched, taken, strict=True):
        assert TOTAL <= each + other <= TOTAL + 1, "and a byte, to see that this node's own credentials may read it"
    assert sum(node.sum_of("dsfs_read_bytes_total", tier="shared") for node in nodes) > 0
    eventually(lambda: is_quiet(shared), 20, "what was shown is published too")


def test_nodes_fetch_different_parts_of_one_file_side_by_side(
    mounts: Mounts, tmp_path: Path, origin: web.Hostile
) -> None:
    first, second = cluster(mounts, 2, tmp_path / "shared", manifest(tmp_path, origin))
    gate = origin.gate("/data/large", after_bytes=MIB)
    # The first bytes alone: how far a reader of all has asked ahead when it is held is a matter of time.
    held = subprocess.Popen(
        [sys.executable, "-c", _READ_AT, first.root / "large", "0"], stderr=subprocess.PIPE, text=True
    )
    assert gate.reached.wait(20)
    assert read_at(second, 30 * MIB) == LARGE[30 * MIB : 31 * MIB]
    gate.open()
    finished(held)
    finished(reading(first, "large"))
    once = range(len(LARGE), len(LARGE) + 3)  # each node may ask for a byte, to see whether it may read at all
    assert sent(origin) in once
    group = 8 * MIB

    def fetched_by_second() -> bool:
        return second.sum_of("dsfs_origin_read_bytes_total") in (group, group + 1)

    eventually(fetched_by_second, 10, "it fetched a group while the first was held")
    assert first.sum_of("dsfs_shared_read_bytes_total") == group
    finished(reading(second, "large"))
    assert sent(origin) in once


def test_holders_that_die_or_stall_are_overtaken(mounts: Mounts, tmp_path: Path, origin: web.Hostile) -> None:
    shared = tmp_path / "shared"
    dies, stalls, reads = cluster(mounts, 3, shared, manifest(tmp_path, origin))
    gate, held = [], []
    for node, offset in ((dies, 0), (stalls, 30 * MIB)):
        gate.append(origin.gate("/data/large", after_bytes=MIB // 2))
        held.append(subprocess.Popen([sys.executable, "-c", _READ_AT, node.root / "large", str(offset)]))
        assert gate[-1].reached.wait(20)
    eventually(lambda: len(leases(shared)) == 2, 10, "both hold a lease")
    dies.destroy()  # all of the node, or its keeper would start another server
    held[0].kill()
    held[0].wait()
    stopped = (stalls.server_pid, stalls.keeper_pid)  # it would end a server that says nothing
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        finished(reading(reads, "large"))
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        for each in gate:
            each.open()
    assert held[1].wait(40) == 0
    finished(reading(stalls, "large"))
    assert sent(origin) <= len(LARGE) + 2 * 8 * MIB + 3, "what was in flight came twice, and nothing else"
    eventually(lambda: not leases(shared), 10, "no lease stays behind")


def test_what_is_damaged_there_is_dropped_and_fetched_again(
    mounts: Mounts, tmp_path: Path, origin: web.Hostile
) -> None:
    shared = tmp_path / "shared"
    (node,) = cluster(mounts, 1, shared, manifest(tmp_path, origin))
    node.expect_log("shared cache file dropped")

    def read_anew() -> float:
        """Everything, as a node does that has nothing; how many bytes of it came from the origin."""
        assert dsfs("evict", "team/data", f"-m{node.mountpoint}").returncode == 0
        for name in FILES:
            drop_pages(node.root / name)
        before = node.sum_of("dsfs_origin_read_bytes_total")
        finished(reading(node))
        return node.sum_of("dsfs_origin_read_bytes_total") - before

    assert read_anew() - TOTAL in (0, 1)  # a byte may be asked for first, to see whether this node may read at all
    eventually(lambda: is_quiet(shared), 20, "what was shown is published too")
    files = sorted(files_of(shared))
    assert len(files) == 6 + len(SMALL)
    for number, path in enumerate(files[:-2]):
        data = bytearray(path.read_bytes())
        if number % 3 == 0:
            data[-1 - number * 1000 % len(data)] ^= 1
        elif number % 3 == 1:
            del data[len(data) // 2 :]
        else:
            data[10] ^= 1  # of another object, it says
        path.write_bytes(data)
    os.rename(files[-2], files[-1])  # right in itself, and in the place of another
    assert read_anew() == TOTAL
    assert node.sum_of("dsfs_cache_corrupt_blocks_total") == len(files) - 1
    assert read_anew() == 0, "it was repaired"


def test_what_is_private_cannot_be_read_there_by_others(mounts: Mounts, tmp_path: Path, origin: web.Hostile) -> None:
    shared = tmp_path / "shared"
    own, all_see = manifest(tmp_path, origin), manifest(tmp_path, origin, "open", share=True)
    some = manifest(tmp_path, origin, "some", share=True, shareToNamespaceSelector={"matchLabels": {"team": "red"}})
    mount = mounts.mount("-f", own, "-f", all_see, "-f", some, f"--shared-cache={shared}")
    for namespace, name in (("team", "f03"), ("open", "f04"), ("some", "f05")):
        assert (mount.mountpoint / namespace / "data" / name).read_bytes() == SMALL[name]
    eventually(lambda: is_quiet(shared) and len(files_of(shared)) == 3, 10, "all are there")
    assert {path.relative_to(shared).parts[0] for path in files_of(shared)} == {"public", "private"}
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in shared.rglob("*")}
    for path, mode in modes.items():
        place = path.relative_to(shared).parts
        if place[0] == "private" and len(place) > 1:
            assert not mode & 0o077, path
        assert not mode & 0o022, path
    (shared / "public").chmod(0o777)
    other = mounts.mount("-f", all_see, f"--shared-cache={shared}")
    other.expect_log("shared cache not used")
    assert (other.mountpoint / "open/data/f04").read_bytes() == SMALL["f04"]
    assert other.sum_of("dsfs_origin_read_bytes_total") >= len(SMALL["f04"]), "others could have written there"
    assert "chmod" in other.status()["shared_cache"]["message"]


def test_a_directory_that_is_no_shared_cache_is_refused(mounts: Mounts, tmp_path: Path, origin: web.Hostile) -> None:
    mountpoint, cache = mounts.place()
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "version").write_text("dsfs shared cache, layout 2\n")
    argv = ("mount", f"{origin.url}data/", mountpoint, f"--cache-dir={cache}", f"--shared-cache={shared}")
    one_line_failure(dsfs(*argv), str(shared), "layout 2", "layout 1")
    (shared / "version").rename(shared / "thesis.txt")
    one_line_failure(dsfs(*argv), str(shared), "thesis.txt", "--shared-cache")
    assert [path.name for path in shared.iterdir()] == ["thesis.txt"]
    wrong = dsfs("mount", f"{origin.url}data/", mountpoint, f"--cache-dir={cache}", "--shared-cache-size=1GiB")
    assert wrong.returncode == 2


def test_hanging_full_read_only_and_gone(mounts: Mounts, tmp_path: Path, origin: web.Hostile) -> None:
    """Reads go on whatever happens to the directory, and it is used again when it can be."""
    shared, image, names = tmp_path / "shared", tmp_path / "image", iter(SMALL)
    shared.mkdir()
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    run("mkfs.ext4", "-q", "-m", "0", image)
    run("mount", "-o", "loop", image, shared)
    try:
        (node,) = cluster(mounts, 1, shared, probes(tmp_path, origin), "--shared-cache-size=1GiB")
        node.expect_log("shared cache (is only read|in trouble)")

        def probe(name: str) -> subprocess.Popen[str]:
            argv = [str(node.mountpoint / "probe" / name / name), hashlib.sha256(SMALL[name]).hexdigest()]
            return subprocess.Popen([sys.executable, "-c", _READ, *argv], stderr=subprocess.PIPE, text=True)

        def says(text: str) -> None:
            def said() -> bool:
                status = node.look()
                assert status["healthy"], "it reads on"
                message = str(status["shared_cache"]["message"])
                return text in message if text else not message

            eventually(said, 25, f"status says {text!r}")
            assert node.sum_of("dsfs_shared_trouble") == bool(text)

        def used_for_next(within_s: float = 10.0) -> bool:
            """A reader has its bytes before they are published; what hung before may be written now, too."""
            before, name = node.sum_of("dsfs_shared_written_bytes_total"), next(names)
            finished(probe(name))
            until_s = time.monotonic() + within_s
            while node.sum_of("dsfs_shared_written_bytes_total") - before < len(SMALL[name]):
                if time.monotonic() > until_s:
                    return False
                time.sleep(0.05)
            return True

        assert used_for_next()
        run("fsfreeze", "-f", shared)  # whoever writes there hangs, and cannot even be killed
        finished(*(probe(next(names)) for _ in range(4)))
        says("does not answer")
        hanging = [path for path in Path(f"/proc/{node.server_pid}/task").iterdir() if is_stuck(path)]
        assert 1 <= len(hanging) <= 16 + 1, "in threads of its own, and no more of them"
        run("fsfreeze", "-u", shared)
        says("")
        assert used_for_next()

        (shared / ".filling").write_bytes(bytes(os.statvfs(shared).f_bavail * os.statvfs(shared).f_frsize - 6 * MIB))
        finished(reading(node, "large"))
        says("No space left")
        (shared / ".filling").unlink()
        says("")
        assert used_for_next()

        run("mount", "-o", "remount,ro", shared)
        assert not used_for_next(within_s=1.0)
        says("Read-only")
        run("mount", "-o", "remount,rw", shared)
        says("")
        assert used_for_next()

        run("umount", "-l", shared)
        assert not used_for_next(within_s=1.0)
        says("No such file or directory")
        assert list(shared.iterdir()) == [], "nothing is written below the place where it was mounted"
        run("mount", "-o", "loop", image, shared)
        says("")
        assert used_for_next()
    finally:
        subprocess.run(["fsfreeze", "-u", str(shared)], check=False, capture_output=True)
        subprocess.run(["umount", "-l", str(shared)], check=False, capture_output=True)


def run(*argv: str | Path) -> None:
    subprocess.run([str(each) for each in argv], check=True, timeout=20)


def is_stuck(task: Path) -> bool:
    """Whether a thread waits in the kernel and cannot be interrupted."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "D"
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return False
