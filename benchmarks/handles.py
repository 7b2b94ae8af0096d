"""Many open files in one mount: what the server holds for them, and how long a restart takes with all of them open.

    python -m benchmarks.handles [--handles 100000] [--path passthrough|openless|daemon]

Opens every file of a local directory again and again until there are so many handles, kills the server, and reads one
byte of each handle from the next one. Numbers are of this machine's load, too: CPU seconds are the server's.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import processes
from benchmarks.report import circumstances, command_line, say
from tests.manifests import dataset, write_manifests
from tests.mounts import Mount, Mounts, eventually

FILES = 1000
SIZE_BYTES = 4096
EACH = 10_000  # handles of one process: limits of 20,000 are common


def of_server(pid: int) -> tuple[float, int, float]:
    """Resident MB, descriptors, CPU seconds."""
    return processes.memory_bytes(pid) / 1e6, processes.descriptors(pid), sum(processes.cpu_s(pid))


def mounted(mounts: Mounts, source: Path, path: str) -> Mount:
    manifest = write_manifests(mounts.directory / "manifest.yaml", dataset("data", source, readPath=path))
    mount = mounts.mount("-f", manifest, session="direct", dataset="default/data")
    mount.wait_phase("READY")
    return mount


def hold(link: Connection, names: list[str], share: range) -> None:
    """In a process of its own: open, read from all when told, close when told."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    handles = {number: os.open(names[number % FILES], os.O_RDONLY) for number in share}
    link.send("open")
    link.recv()
    link.send(sum(os.pread(fd, 4, 8) != (number % FILES).to_bytes(4, "little") for number, fd in handles.items()))
    link.recv()
    for fd in handles.values():
        os.close(fd)
    link.send("closed")


def main() -> None:
    parser = command_line("benchmarks.handles", __doc__)
    parser.add_argument("--handles", type=int, default=100_000)
    parser.add_argument("--path", choices=["passthrough", "openless", "daemon"], default="passthrough")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dsfs-handles-")))
        source = directory / "source"
        source.mkdir()
        for number in range(FILES):
            (source / f"f{number:04}").write_bytes(number.to_bytes(4, "little") * (SIZE_BYTES // 4))
        mounts = Mounts(directory)
        stack.callback(mounts.close)
        mount = mounted(mounts, source, arguments.path)
        names = [f"{mount.root}/f{number:04}" for number in range(FILES)]
        for name in names:
            Path(name).read_bytes()  # whole, so that it is handed to the kernel where it can be
        before = of_server(mount.server_pid)
        started = time.monotonic()
        context = multiprocessing.get_context("spawn")
        shares = [range(start, min(start + EACH, arguments.handles)) for start in range(0, arguments.handles, EACH)]
        links = []
        for share in shares:
            ours, theirs = context.Pipe()
            context.Process(target=hold, args=(theirs, names, share), daemon=True).start()
            links.append(ours)
        for link in links:
            link.recv()
        opened_s = time.monotonic() - started
        full = of_server(mount.server_pid)
        killed = mount.kill_server()
        started = time.monotonic()
        os.path.exists(f"{mount.root}/none")  # a name that nobody has asked for: the server has to say so
        answered_s = time.monotonic() - started
        server = eventually(lambda: (pid := mount.server_pid_now()) not in (None, killed) and pid, 60.0, "a server")
        for link in links:
            link.send("read")
        wrong = sum(link.recv() for link in links)
        after = of_server(server)
        started = time.monotonic()
        for link in links:
            link.send("close")
        for link in links:
            link.recv()
        closed_s = time.monotonic() - started
        say(
            f"{circumstances()}\n"
            f"{arguments.path}, {arguments.handles:,} handles: opened in {opened_s:.1f} s; server RSS"
            f" {before[0]:.0f} -> {full[0]:.0f} MB, descriptors {before[1]} -> {full[1]};"
            f" killed, the next one answered after {answered_s:.2f} s;"
            f" all read from: {wrong} wrong, server RSS {after[0]:.0f} MB, {after[1]} descriptors,"
            f" {after[2]:.2f} CPU s; closed in {closed_s:.1f} s"
        )
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
