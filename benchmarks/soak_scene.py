"""What soak and kills run on: a mount with datasets on all read paths, their origins, and a crowd of readers.

A directory, a web server and an S3 server that never fail, and a web server behind a relay that may be made to.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.soak_process import SLOT, UNTIL
from tests.lab.disk import small_disk
from tests.lab.wire import Wire, wire_to
from tests.manifests import dataset, write_manifests
from tests.mounts import Mount, Mounts, clean_environment
from tests.servers.http_server import nginx
from tests.servers.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, seaweedfs

MIB = 1 << 20
READ_TIMEOUT_S = 10.0
CACHE_DISK_MIB = 500
CACHE_SIZE_MIB = 220  # of some 330 MiB that are read: blocks come and go all the time


@dataclass(frozen=True)
class Scene:
    """``truth`` has a directory for each dataset; ``wire`` is in front of the rough one's origin."""

    directory: Path
    mount: Mount
    wire: Wire
    truth: dict[str, Path]


@contextlib.contextmanager
def scene(directory: Path) -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        for each in ("www", "s3", "rough"):
            (directory / each).mkdir()
        truth = {
            "calm/dir": make_truth(directory / "truth/dir", 1, 300, 4, 16),
            "calm/web": make_truth(directory / "truth/web", 2, 600, 0, 0),
            "calm/s3": make_truth(directory / "truth/s3", 3, 300, 3, 12),
            "rough/flaky": make_truth(directory / "truth/rough", 4, 200, 2, 24),
        }
        web = stack.enter_context(nginx(directory / "www"))
        subprocess.run(["cp", "-a", f"{truth['calm/web']}/.", web.root], check=True)
        rough = stack.enter_context(nginx(directory / "rough"))
        subprocess.run(["cp", "-a", f"{truth['rough/flaky']}/.", rough.root], check=True)
        wire = stack.enter_context(wire_to(int(rough.url.rstrip("/").rpartition(":")[2])))
        s3 = stack.enter_context(seaweedfs(directory / "s3"))
        for path in truth["calm/s3"].rglob("*"):
            if path.is_file():
                s3.put(f"s3/{path.relative_to(truth['calm/s3'])}", path.read_bytes())
        disk = stack.enter_context(small_disk(directory, CACHE_DISK_MIB))
        mounts = Mounts(directory)
        stack.callback(mounts.close)
        at_s3 = {"options": {"endpoint": s3.endpoint, "region": "us-east-1"}}
        place = write_manifests(
            directory / "datasets.yaml",
            dataset("dir", truth["calm/dir"], "calm", readPath="passthrough"),
            dataset("web", web.url, "calm", "HTTP", readPath="openless"),
            dataset("s3", f"s3://{BUCKET}/s3", "calm", "S3", source=at_s3, readPath="daemon"),
            dataset("flaky", f"http://127.0.0.1:{wire.port}/", "rough", "HTTP", readPath="auto"),
        )
        flags = (f"--cache-size={CACHE_SIZE_MIB}MiB", f"--read-timeout={READ_TIMEOUT_S:g}s")
        keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        mount = mounts.mount("-f", place, *flags, session="direct", cache_dir=disk / "cache", env=keys)
        for name in truth:
            mount.wait_phase("READY", name.partition("/")[2])
        yield Scene(directory, mount, wire, truth)


def make_truth(root: Path, seed: int, small: int, large: int, large_mib: int) -> Path:
    """Files of random bytes; small ones of up to 200 kB."""
    rng = random.Random(seed)
    for number in range(small):
        path = root / f"d{number % 7}/f{number:04}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.randrange(1, 200_000)))
    for number in range(large):
        (root / f"large{number}").write_bytes(rng.randbytes(large_mib * MIB + number))
    return root


class Totals(NamedTuple):
    """Of all readers; times in seconds, the longest of any."""

    operations: int
    bytes: int
    wrong: int
    failed: int
    explained: int
    calm_s: float
    rough_s: float


def totals(counters: mmap.mmap, numbers: range) -> Totals:
    if not numbers:
        return Totals(0, 0, 0, 0, 0, 0.0, 0.0)
    slots = [SLOT.unpack_from(counters, number * SLOT.size) for number in numbers]
    sums = [sum(slot[at] for slot in slots) for at in range(5)]
    return Totals(*sums[:5], max(slot[5] for slot in slots), max(slot[6] for slot in slots))  # type: ignore[call-arg]


class Crowd:
    """``readers`` of ``soak_reader.py`` and, behind them, ``storm`` of ``soak_storm.py``, all of them processes.

    ``slow_s``: what takes longer is noted; ``batch``: how many reads the storm has under way at a time.
    """

    def __init__(self, at: Scene, readers: int, storm: int, *, slow_s: float = 0.05, batch: int = 32) -> None:
        self._directory = at.directory
        self.everybody = range(readers + storm)
        self.readers, self.storm = self.everybody[:readers], self.everybody[readers:]
        self._processes: list[subprocess.Popen[bytes]] = []
        plan = {
            "datasets": [
                {
                    "root": f"{at.mount.mountpoint}/{name}",
                    "truth": str(root),
                    "rough": name.startswith("rough"),
                    "direct": name in ("calm/web", "calm/s3"),  # an open handle's reads reach the server
                }
                for name, root in at.truth.items()
            ],
            "counters": str(at.directory / "counters"),
            "until": str(at.directory / "until"),
            "slow": str(at.directory / "slow"),
            "slow_s": slow_s,
            "batch": batch,
        }
        (at.directory / "plan.json").write_text(json.dumps(plan))
        (at.directory / "until").write_bytes(UNTIL.pack(0.0))
        (at.directory / "counters").write_bytes(bytes(SLOT.size * len(self.everybody)))
        with (at.directory / "counters").open("r+b") as file:
            self._counters = mmap.mmap(file.fileno(), 0)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        repository = Path(__file__).parent.parent
        for number in self.everybody:
            module = f"benchmarks.{'soak_storm' if number in self.storm else 'soak_reader'}"
            argv = [sys.executable, "-m", module, str(self._directory / "plan.json"), str(number)]
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, env=clean_environment(), cwd=repository)
            self._processes.append(process)
        try:
            yield
        finally:
            for process in self._processes:
                assert process.stdin is not None
                process.stdin.close()
            for process in self._processes:
                process.wait(60)

    def exit_statuses(self) -> list[int]:
        return [process.returncode for process in self._processes]

    def totals(self, numbers: range) -> Totals:
        return totals(self._counters, numbers)

    def slow(self) -> list[tuple[float, float]]:
        """Start (monotonic) and length in seconds of whatever took long where the origin does not fail."""
        found = []
        for number in self.everybody:
            for line in (self._directory / f"slow.{number}").read_text().splitlines():
                started, took, _what = line.split()
                found.append((float(started), float(took)))
        return found
