"""What a cold read costs in processor time, which says more than a clock on a machine with other work to do.

    python -m benchmarks.cost --origin http|s3 [--flames DIR]

CPU seconds of the server (of dsfs with its courier) per GB of one large file, and per 1,000 small files, for rclone and
dsfs in turn. With --flames where dsfs spends them: a flame graph for each of its processes and each row.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import data, peers, processes, workloads
from benchmarks.report import Table, circumstances, command_line, say
from benchmarks.run import contestants, started
from tests.mounts import courier_of, eventually

LARGE_MIB, SMALL_FILES = 512, 2000
UNITS: list[tuple[str, Callable[[Path], float], float]] = [
    ("per GB", workloads.sequential, LARGE_MIB * 1.048576 / 1000),
    ("per 1,000 small files", workloads.small_files, SMALL_FILES / 1000),
]


def server_of(root: Path, name: str) -> list[int]:
    """Whoever answers at a mount point, and the courier beside it, which has started by then."""
    if name == "rclone":
        return processes.running("rclone", "mount", str(root))
    said = subprocess.run([peers.BIN / "dsfs", "status", "--json"], check=True, capture_output=True).stdout
    mounts = json.loads(said)["mounts"]
    (server,) = [mount["server_pid"] for mount in mounts if root.is_relative_to(mount["mountpoint"])]

    def courier() -> int:
        pid = courier_of(server) or 0
        return pid if processes.name_of(pid) == "dsfs-courier" else 0  # its name from when it has imported all it needs

    return [server, int(eventually(courier, 20.0, "the server has a courier"))]


def main() -> None:
    parser = command_line("benchmarks.cost", __doc__)
    parser.add_argument("--origin", choices=("s3", "http"), default="http")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--flames", type=Path, metavar="DIR", help="flame graphs of the last round (needs py-spy)")
    args = parser.parse_args()
    with TemporaryDirectory(prefix="dsfs-cost-", ignore_cleanup_errors=True) as made:
        work = Path(made)
        data.make(work / "source", data.Sizes(LARGE_MIB << 20, SMALL_FILES, 0))
        with started(args.origin, work / "source", work) as origin:
            say(f"{circumstances()}, origin {args.origin}\n")
            table = Table("", "", "CPU-s", "user", "system", "wall s", "load")
            for _ in range(args.rounds):
                for name, start in contestants(origin, work / "source", work, {"rclone", "dsfs daemon"}).items():
                    with start() as root:
                        measure(table, name, root, args.flames)


@contextmanager
def watched(pids: Sequence[int], unit: str, directory: Path | None) -> Iterator[None]:
    """A flame graph for each of these processes: what runs, and in which part of the code; without what only waits."""
    with ExitStack() as watching:
        for pid in pids if directory is not None else ():
            target = f"{directory}/{processes.name_of(pid)}-{unit.replace(' ', '-').replace(',', '')}.svg"
            # without a stop at each look, which made the reads twenty times as long
            command = [peers.BIN / "py-spy", "record", "--nonblocking", f"--output={target}", f"--pid={pid}"]
            recorder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            assert recorder.stdout is not None
            watching.callback(recorder.communicate)  # it writes what it has found
            watching.callback(recorder.send_signal, signal.SIGINT)
            while "Sampling" not in (line := recorder.stdout.readline()):
                if not line:
                    raise RuntimeError(f"py-spy ended with status {recorder.wait()}")
        yield


def measure(table: Table, name: str, root: Path, flames: Path | None) -> None:
    pids = server_of(root, name)
    for unit, workload, count in UNITS:
        os.sync()
        with watched(pids, unit, None if name == "rclone" else flames):
            before, began_s = processes.cpu_s(*pids), time.perf_counter()
            workload(root)
            wall_s, after = time.perf_counter() - began_s, processes.cpu_s(*pids)
        user, system = ((b - a) / count for a, b in zip(before, after, strict=True))
        cpu = (f"{each:.2f}" for each in (user + system, user, system))
        table.row(name, unit, *cpu, f"{wall_s:.2f}", f"{os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
