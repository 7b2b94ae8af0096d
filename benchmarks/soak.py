"""Reads at random under faults at random, for as long as is asked, and compares every byte with the truth.

    python -m benchmarks.soak --minutes 60 [--readers N] [--storm N] [--faults kill-server,kill-keeper,…] [--seed N]

One mount shows datasets on all read paths of the direct session: a directory, a web server and an S3 server that never
fail, and a web server behind a relay that does. Exit status 1 if one byte was wrong, or one operation failed that no
fault of its origin explains. In the last third no process is killed, so that the growth of a server can be seen.
A storm is N more processes whose requests all reach the server, as many as it can answer (``soak_storm.py``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.soak_reader import SLOT, UNTIL
from benchmarks.soak_watch import Watch
from tests.lab.wire import Mode, Wire, wire_to
from tests.mounts import Mount, Mounts, clean_environment, dsfs
from tests.servers.http_server import nginx
from tests.servers.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, seaweedfs

MIB = 1 << 20
READ_TIMEOUT_S = 10.0
CACHE_DISK_MIB = 500
CACHE_SIZE_MIB = 220  # of some 330 MiB that are read: blocks come and go all the time
PAUSE_S = (2.0, 6.0)
BLAME_S = 3.0  # a pause that begins so soon after a fault is that fault's


@dataclass
class Fault:
    """One thing that was done, and when (seconds on the monotonic clock)."""

    kind: str
    started_s: float
    ended_s: float = 0.0


class Soak:
    def __init__(self, directory: Path, mount: Mount, wire: Wire, watch: Watch, rng: random.Random) -> None:
        self._directory = directory
        self._mount = mount
        self._wire = wire
        self._rng = rng
        self.faults: list[Fault] = []
        self._watch = watch
        (directory / "until").write_bytes(UNTIL.pack(0.0))
        with (directory / "until").open("r+b") as file:
            self._until = mmap.mmap(file.fileno(), 0)
        self.kinds: dict[str, Callable[[], None]] = {
            "kill-server": self._kill_server,
            "kill-keeper": self._kill_keeper,
            "stop-server": self._stop_server,
            "restart": self._restart,
            "origin-refuses": lambda: self._origin(Mode.REFUSE),
            "origin-stalls": lambda: self._origin(Mode.STALL),
            "origin-drips": lambda: self._origin(Mode.DRIP),
            "origin-cuts": self._cut,
            "disk-full": self._fill_disk,
            "evict": self._evict,
            "resync": self._resync,
            "drop-pages": self._drop_pages,
        }

    # -- faults ---------------------------------------------------------------------------------------------------

    def _kill_server(self) -> None:
        os.kill(self._server(), signal.SIGKILL)

    def _kill_keeper(self) -> None:
        os.kill(int(self._mount.status()["keeper_pid"]), signal.SIGKILL)
        time.sleep(2.0)  # time to heal, before the next fault can take the server

    def _stop_server(self) -> None:
        pid = self._server()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.3)
            os.kill(pid, signal.SIGCONT)

    def _restart(self) -> None:
        self._watch.look()
        done = dsfs("restart", self._mount.mountpoint)
        if done.returncode != 0:
            print(f"restart: {done.stderr.strip()}", file=sys.stderr)

    def _origin(self, mode: Mode) -> None:
        self._may_fail_until(float("inf"))
        self._wire.set(mode)
        time.sleep(self._rng.uniform(1.0, 4.0))
        self._wire.set(Mode.PASS)
        # a connection that hung is given up by its own timeout; what waits for it began before that
        self._may_fail_until(time.monotonic() + READ_TIMEOUT_S)

    def _cut(self) -> None:
        self._wire.cut()  # nothing may fail: a reset is tried again

    def _fill_disk(self) -> None:
        filler = self._mount.cache_dir.parent / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(MIB))
        time.sleep(2.0)
        filler.unlink()

    def _evict(self) -> None:
        dsfs(
            "evict", "-m", self._mount.mountpoint, self._rng.choice(("calm/dir", "calm/web", "calm/s3", "rough/flaky"))
        )

    def _resync(self) -> None:
        dsfs("dataset", "resync", "-m", self._mount.mountpoint, self._rng.choice(("calm/dir", "calm/web", "calm/s3")))

    def _drop_pages(self) -> None:
        Path("/proc/sys/vm/drop_caches").write_text("1\n")

    def _may_fail_until(self, when_s: float) -> None:
        UNTIL.pack_into(self._until, 0, when_s)

    def _server(self) -> int:
        self._watch.look()  # the last that is heard of it
        return self._mount.server_pid

    # -- the schedule ---------------------------------------------------------------------------------------------

    def run(self, minutes: float, wanted: set[str], report: Callable[[], None]) -> None:
        killing = {"kill-server", "kill-keeper", "stop-server", "restart"}
        started, reported = time.monotonic(), time.monotonic()
        end = started + minutes * 60
        while time.monotonic() < end:
            calm = time.monotonic() > started + minutes * 40
            if calm:
                self._watch.calm()
            kinds = sorted(wanted - killing if calm else wanted)
            if kinds:
                fault = Fault(self._rng.choice(kinds), time.monotonic())
                self.kinds[fault.kind]()
                fault.ended_s = time.monotonic()
                self.faults.append(fault)
            time.sleep(min(self._rng.uniform(*PAUSE_S), max(0.0, end - time.monotonic())))
            if time.monotonic() - reported > 60:
                reported = time.monotonic()
                report()


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


def manifests(directory: Path, dir_root: Path, web: str, s3: str, rough: str) -> Path:
    def dataset(name: str, kind: str, uri: str, path: str, **options: str) -> dict[str, object]:
        namespace, _, short = name.partition("/")
        source = {"type": kind, "uri": uri, "options": options}
        metadata = {"name": short, "namespace": namespace}
        spec = {"source": source, "readPath": path}
        return {"apiVersion": "dsfs.dev/v1alpha1", "kind": "Dataset", "metadata": metadata, "spec": spec}

    documents = [
        dataset("calm/dir", "PVC", str(dir_root), "passthrough"),
        dataset("calm/web", "HTTP", web, "openless"),
        dataset("calm/s3", "S3", f"s3://{BUCKET}/s3", "daemon", endpoint=s3, region="us-east-1"),
        dataset("rough/flaky", "HTTP", rough, "auto"),
    ]
    place = directory / "datasets"
    place.mkdir()
    for number, document in enumerate(documents):
        (place / f"{number}.json").write_text(json.dumps(document))
    return place


@contextlib.contextmanager
def cache_disk(directory: Path) -> Iterator[Path]:
    """A small ext4 of its own, so that it can be filled."""
    image, place = directory / "disk.img", directory / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(CACHE_DISK_MIB * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


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


def pauses(soak: Soak, directory: Path, readers: int) -> dict[str, list[float]]:
    """The longest operation that each fault made, where the origin did not fail."""
    slow = []
    for number in range(readers):
        for line in (directory / f"slow.{number}").read_text().splitlines():
            started, took, _what = line.split()
            slow.append((float(started), float(took)))
    found: dict[str, list[float]] = {}
    for fault in soak.faults:
        during = [took for at, took in slow if at + took > fault.started_s and at < fault.ended_s + BLAME_S]
        found.setdefault(fault.kind, []).append(max(during, default=0.0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--storm", type=int, default=0, help="processes whose requests all reach the server")
    parser.add_argument("--faults", default="", help="comma-separated; all of them if not given")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dsfs-soak-")))
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
        disk = stack.enter_context(cache_disk(directory))
        mounts = Mounts(directory)
        stack.callback(mounts.close)
        place = manifests(directory, truth["calm/dir"], web.url, s3.endpoint, f"http://127.0.0.1:{wire.port}/")
        flags = (f"--cache-size={CACHE_SIZE_MIB}MiB", f"--read-timeout={READ_TIMEOUT_S:g}s")
        keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        mount = mounts.mount("-f", place, *flags, session="direct", cache_dir=disk / "cache", env=keys)
        for dataset in ("dir", "web", "s3", "flaky"):
            mount.wait_phase("READY", dataset)
        watch = Watch(mount)
        soak = Soak(directory, mount, wire, watch, random.Random(arguments.seed))
        wanted = set(filter(None, arguments.faults.split(","))) or set(soak.kinds)
        if unknown := wanted - set(soak.kinds):
            parser.error(f"no such fault: {', '.join(sorted(unknown))} (there are: {', '.join(soak.kinds)})")
        plan = {
            "datasets": [
                {
                    "root": f"{mount.mountpoint}/{name}",
                    "truth": str(root),
                    "rough": name.startswith("rough"),
                    "direct": name in ("calm/web", "calm/s3"),  # an open handle's reads reach the server
                }
                for name, root in truth.items()
            ],
            "counters": str(directory / "counters"),
            "until": str(directory / "until"),
            "slow": str(directory / "slow"),
        }
        (directory / "plan.json").write_text(json.dumps(plan))
        everybody = range(arguments.readers + arguments.storm)
        readers, storm = everybody[: arguments.readers], everybody[arguments.readers :]
        (directory / "counters").write_bytes(bytes(SLOT.size * len(everybody)))
        with (directory / "counters").open("r+b") as file:
            counters = mmap.mmap(file.fileno(), 0)
        processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    f"benchmarks.{'soak_storm' if number in storm else 'soak_reader'}",
                    str(directory / "plan.json"),
                    str(number),
                ],
                stdin=subprocess.PIPE,
                env=clean_environment(),
                cwd=Path(__file__).parent.parent,
            )
            for number in everybody
        ]
        console = Console()
        started = time.monotonic()

        def report() -> None:
            now, seconds = totals(counters, everybody), time.monotonic() - started
            operations, requests = totals(counters, readers).operations, watch.requests
            console.print(
                f"{seconds / 60:5.1f} min  {operations:,} operations  {now.bytes / 1e9:.1f} GB"
                f"  {now.wrong} wrong  {now.failed} failed  {now.explained} failed with their origin"
                f"  longest {now.calm_s:.2f} s  {requests:,.0f} requests ({requests / seconds:,.0f} a second)",
                soft_wrap=True,
            )

        try:
            with watch.running():
                soak.run(arguments.minutes, wanted, report)
        finally:
            for process in processes:
                assert process.stdin is not None
                process.stdin.close()
            ended = [process.wait(60) for process in processes]
        watch.look()
        report()
        end = totals(counters, everybody)
        table = Table("fault", "times", "longest pause, median", "longest pause, worst")
        for kind, found in sorted(pauses(soak, directory, len(everybody)).items()):
            found.sort()
            table.add_row(kind, str(len(found)), f"{found[len(found) // 2]:.2f} s", f"{found[-1]:.2f} s")
        console.print(table)
        console.print(
            f"requests: {watch.requests:,.0f} by the count of {len(watch.servers)} servers, each until the last look at"
            f" it; {totals(counters, storm).operations:,} of the storm by its own",
            soft_wrap=True,
        )
        for line in watch.growth():
            console.print(line, soft_wrap=True)
        console.print(f"longest where the origin failed: {end.rough_s:.2f} s (--read-timeout {READ_TIMEOUT_S:g} s)")
        bad = end.wrong + end.failed + sum(code != 0 for code in ended)
        if any(ended):
            console.print(f"processes ended with {ended}")
        sys.exit(1 if bad or not end.operations else 0)


if __name__ == "__main__":
    main()
