"""Real mounts for tests, through the real command line; and what makes sure that none of them stays behind.

The watchdog runs this file as a program, so it imports little.

    python -m tests.mounts BASE_DIRECTORY      reads lines "arm SECONDS" and "disarm"; ends, and cleans up, at EOF
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.servers.process import HOST, free_ports

DSFS = str(Path(sys.executable).parent / "dsfs")
RUNTIME_ROOT = Path("/run/dsfs")
VERB_WITHIN_S = 120.0

_TROUBLE = re.compile(r"level=(?:warning|error|critical)|Traceback \(most recent call last\)|^fuse: ", re.MULTILINE)


def dsfs(
    *argv: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    timeout_s: float = VERB_WITHIN_S,
) -> subprocess.CompletedProcess[str]:
    """One call of the command line."""
    return subprocess.run(
        [DSFS, *map(os.fspath, argv)],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=timeout_s,
        env={**clean_environment(), **(env or {})},
        cwd=cwd,
        input=stdin,
        check=False,
    )


def clean_environment() -> dict[str, str]:
    """The environment without what would decide for a source: credentials and endpoints come from the test alone.

    And with modules compiled once, as an installation has them, whatever this environment says of that: five processes
    start with each mount, and compiling dsfs alone was a sixth of what all of them cost.
    """
    dropped = ("AWS_", "HF_", "DSFS_", "PYTHONDONTWRITEBYTECODE")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    return {**kept, "AWS_EC2_METADATA_DISABLED": "true"}


def eventually(condition: Callable[[], Any], within_s: float, what: str) -> Any:
    """Ask until the answer is true; for what gives no event of its own."""
    deadline = time.monotonic() + within_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(0.02)
    return answer


def runtime_dir_of(mountpoint: Path) -> Path:
    """Where a mount's keeper keeps its things (daemon/running.py)."""
    return RUNTIME_ROOT / hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]


class _ControlConnection(http.client.HTTPConnection):
    """To the server of a mount, as the verbs speak with it."""

    def __init__(self, place: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._place = place

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._place))


class Mount:
    """One mount. ``root`` is where the dataset that was asked for lies; the mount point, or a directory in it."""

    def __init__(self, mountpoint: Path, cache_dir: Path, http: str | None) -> None:
        self.mountpoint = mountpoint
        self.cache_dir = cache_dir
        self.http = http
        self.root = mountpoint
        self.mount_seconds = 0.0
        self.said = ""
        self._expected: list[re.Pattern[str]] = []
        self._log = ""

    # -- looking --------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        done = dsfs("status", self.mountpoint, "--json")
        assert done.returncode == 0, done.stderr
        (mount,) = json.loads(done.stdout)["mounts"]
        assert isinstance(mount, dict)
        return mount

    def look(self) -> dict[str, Any]:
        """As ``status``, which takes a process each time: only where no server answers, as that knows more."""
        connection = _ControlConnection(runtime_dir_of(self.mountpoint) / "control.sock")
        try:
            connection.request("GET", "/api/v1/status")
            answer = connection.getresponse()
            found = json.load(answer)
            assert isinstance(found, dict)
            assert answer.status == 200, found
            return found
        except (OSError, http.client.HTTPException):
            return self.status()
        finally:
            connection.close()

    def dataset(self, name: str | None = None) -> dict[str, Any]:
        """One dataset that is shown; the only one if no name is given."""
        found = [each for each in self.look()["datasets"] if name in (None, each["name"])]
        assert len(found) == 1, (name, found)
        dataset = found[0]
        assert isinstance(dataset, dict)
        return dataset

    def wait_phase(self, phase: str, name: str | None = None, within_s: float = 60.0) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            dataset = self.dataset(name)
            return dataset if dataset["phase"] == phase else None

        found = eventually(reached, within_s, f"{name or 'the dataset'} is {phase}")
        assert isinstance(found, dict)
        return found

    @property
    def keeper_pid(self) -> int:
        return int((runtime_dir_of(self.mountpoint) / "lock").read_text())

    @property
    def server_pid(self) -> int:
        """Of the server that answers now; waits for one that is just starting."""

        def answering() -> int:
            found = self.look()
            return int(found["server_pid"]) if found["healthy"] else 0

        return int(eventually(answering, 60.0, "a server answers"))

    def server_pid_now(self) -> int | None:
        """The server that runs, without asking it; a stand-by is none."""
        for pid in processes_of([runtime_dir_of(self.mountpoint)]):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "dsfs-server":
                    return pid
        return None

    def log(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            self._log = (runtime_dir_of(self.mountpoint) / "server.log").read_text(errors="replace")
        return self._log

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its full name, labels included."""
        text = eventually(self._metrics_text, 20, "it listens, which it does for who owns it first")
        samples = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples

    def _metrics_text(self) -> str:
        try:
            with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.URLError as error:
            if isinstance(error.reason, ConnectionRefusedError):
                return ""
            raise

    def operations(self) -> dict[str, float]:
        """How many requests of each kind the daemon has answered."""
        pattern = re.compile(r'dsfs_operation_seconds_count\{operation="(\w+)"\}')
        return {match[1]: value for name, value in self.metrics().items() if (match := pattern.fullmatch(name))}

    def sum_of(self, metric: str, **labels: str) -> float:
        """All samples of a metric that have these labels, added up."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            value
            for name, value in self.metrics().items()
            if name.partition("{")[0] == metric and all(label in name for label in wanted)
        )

    # -- doing ----------------------------------------------------------------------------------------------------

    def expect_log(self, pattern: str) -> None:
        """A warning that this test means to cause."""
        self._expected.append(re.compile(pattern))

    def unexpected_log(self) -> list[str]:
        return [
            line
            for line in self.log().splitlines()
            if _TROUBLE.search(line) and not any(pattern.search(line) for pattern in self._expected)
        ]

    def kill_server(self) -> int:
        """SIGKILL for the server that runs now; its pid. Does not wait for the next one."""
        pid = eventually(self.server_pid_now, 60.0, "the keeper has a server")
        os.kill(pid, signal.SIGKILL)
        return int(pid)

    def kill_server_and_courier(self) -> None:
        """As ``kill_server``; waits until what fetches for the server has ended with it, with nothing more stored."""
        courier = courier_of(self.server_pid)
        self.kill_server()
        if courier is not None:
            eventually(lambda: not _is_courier(courier), 10.0, "a courier ends with its server")

    def kill_keeper(self) -> int:
        """SIGKILL for the keeper; its pid. Waits for the next one, which has taken everything over."""
        self.expect_log("keeper is gone")
        pid = self.keeper_pid
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: (found := self.look())["healthy"] and found["keeper_pid"] != pid, 60.0, "another keeper")
        return pid

    def unmount(self) -> subprocess.CompletedProcess[str]:
        self.log()
        return dsfs("unmount", self.mountpoint)

    def destroy(self) -> None:
        """Whatever state it is in: nothing of it is left afterwards, and nothing of it is entered on the way."""
        self.log()
        destroy(self.mountpoint)
        shutil.rmtree(runtime_dir_of(self.mountpoint), ignore_errors=True)  # a failed start leaves its log


class Mounts:
    """Makes mounts below a directory; ``close`` ends them and tells what should not have happened."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._mounts: list[Mount] = []
        self._made = 0
        self._problems: list[str] = []

    def place(self) -> tuple[Path, Path]:
        """A fresh mount point and the path of a fresh cache directory."""
        number, self._made = self._made, self._made + 1
        mountpoint = self.directory / f"mnt{number}"
        mountpoint.mkdir(parents=True)
        return mountpoint, self.directory / f"cache{number}"

    def adopt(self, mountpoint: Path, cache_dir: Path, http: str | None = None) -> Mount:
        """Have a mount that the test makes itself looked after."""
        mount = Mount(mountpoint, cache_dir, http)
        self._mounts.append(mount)
        return mount

    def mount(
        self,
        *what: str | os.PathLike[str],
        session: str = "auto",
        cache_dir: Path | None = None,
        mountpoint: Path | None = None,
        dataset: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Mount:
        """``dsfs mount WHAT… MOUNTPOINT``; fails the test when that fails. ``dataset``: NAMESPACE/NAME becomes root."""
        fresh_mountpoint, fresh_cache = self.place()
        http = f"{HOST}:{free_ports(1)[0]}"
        mount = self.adopt(mountpoint or fresh_mountpoint, cache_dir or fresh_cache, http)
        argv = ["mount", *map(os.fspath, what), str(mount.mountpoint), f"--cache-dir={mount.cache_dir}"]
        on_the_machines_disk = mount.cache_dir.parent.stat().st_dev == self.directory.stat().st_dev
        if on_the_machines_disk and not any(str(each).startswith("--min-free=") for each in what):
            argv.append("--min-free=0")  # however full that disk may be
        started = time.monotonic()
        done = dsfs(*argv, f"--session={session}", f"--http={http}", env=env)
        mount.mount_seconds = time.monotonic() - started
        if any(str(each).startswith("--read-timeout=") for each in what):  # half of it without a word, on a busy disk
            mount.expect_log("the courier for small files")
        mount.said = done.stderr
        assert done.returncode == 0, f"dsfs mount failed: {done.stderr}\n{mount.log()}"
        if dataset is not None:
            mount.root = mount.mountpoint / dataset
        return mount

    def close_quietly(self) -> None:
        """For fixtures that take away what a mount stands on. What is wrong is told by ``close`` all the same."""
        self._problems += self.close()

    def close(self) -> list[str]:
        problems, self._problems = self._problems, []
        for mount in reversed(self._mounts):
            if is_mounted(mount.mountpoint):
                try:
                    done = mount.unmount()
                    if done.returncode != 0:
                        problems.append(f"unmount: {done.stderr.strip()}")
                except subprocess.TimeoutExpired:
                    problems.append(f"unmount of {mount.mountpoint} does not end")
            mount.destroy()
            problems += mount.unexpected_log()
        self._mounts.clear()
        return problems


# -- leaving nothing behind ---------------------------------------------------------------------------------------


def fuse_mounts_below(directory: Path) -> list[tuple[str, Path]]:
    """(device number, place) of every FUSE mount at or below a directory, the innermost last."""
    found = []
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            before, _, after = line.partition(b" - ")
            fields = before.split(b" ")
            place = os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), fields[4]))
            inside = place == str(directory) or place.startswith(f"{directory}/")
            if inside and after.startswith(b"fuse"):
                found.append((fields[2].decode(), Path(place)))
    return found


def is_mounted(mountpoint: Path) -> bool:
    return any(place == mountpoint for _device, place in fuse_mounts_below(mountpoint))


def abort(directory: Path) -> int:
    """End every request that waits in a FUSE mount at or below a directory; how many connections that were.

    A connection ends with the last descriptor of /dev/fuse, so those who hold one are killed: fusectl, which has a
    switch for that, is not mounted everywhere.
    """
    mounts = fuse_mounts_below(directory)
    runtimes = runtime_dirs_below(directory)
    while pids := processes_of(runtimes):
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: each starts the others anew
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        for pid in pids:
            _kill(pid)
    for device in {device for device, _place in mounts}:
        with contextlib.suppress(OSError):
            Path(f"/sys/fs/fuse/connections/{device.partition(':')[2]}/abort").write_text("1")
    return len(mounts)


def processes_of(
    runtime_dirs: Sequence[Path], modules: Sequence[bytes] = (b"daemon.keeper", b"daemon.server")
) -> list[int]:
    """Keepers and servers that were started with one of these runtime directories."""
    wanted = {os.fsencode(each) for each in runtime_dirs}
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                argv = file.read().split(b"\0")
                if set(modules) & set(argv):
                    found += [int(name)] if wanted & set(argv) else []
    return found


def courier_of(server_pid: int) -> int | None:
    """The process that fetches for a server."""
    for task in os.listdir(f"/proc/{server_pid}/task"):
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended meanwhile
            for child in Path(f"/proc/{server_pid}/task/{task}/children").read_text().split():
                if _is_courier(int(child)):
                    return int(child)
    return None


def _is_courier(pid: int) -> bool:
    try:
        return b"daemon.courier" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def runtime_dirs_below(directory: Path) -> list[Path]:
    """Runtime directories of mounts at or below a directory."""
    found = []
    for path in RUNTIME_ROOT.glob("*/keeper.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            place = json.loads(path.read_text())["mountpoint"]
            if place == str(directory) or place.startswith(f"{directory}/"):
                found.append(path.parent)
    return found


def leftovers(directory: Path) -> list[str]:
    """Mounts, processes and runtime directories that belong to a directory and should be gone."""
    runtimes = runtime_dirs_below(directory)
    found = [f"mount {place}" for _device, place in fuse_mounts_below(directory)]
    found += [f"process {pid}" for pid in processes_of(runtimes)]
    return found + [f"runtime directory {path}" for path in runtimes]


def destroy(directory: Path) -> None:
    """End all mounts at or below a directory and their processes, by force. Never enters a mount."""
    runtimes = runtime_dirs_below(directory)
    abort(directory)
    for _device, place in reversed(fuse_mounts_below(directory)):
        subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)
    for path in runtimes:
        shutil.rmtree(path, ignore_errors=True)


def _kill(pid: int) -> None:
    """SIGKILL, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], 10)
        finally:
            os.close(pidfd)


class Watchdog:
    """A process of its own that aborts this session's FUSE connections when a test hangs in one.

    It has to be a process: a page fault in a mapped file waits with the interpreter's lock held. When the session
    ends, however it ends, the watchdog clears what is left.
    """

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mounts", str(directory)],
            stdin=subprocess.PIPE,
            start_new_session=True,
            cwd=Path(__file__).parent.parent,
        )

    @contextlib.contextmanager
    def watching(self, seconds: float) -> Iterator[None]:
        self._say(f"arm {seconds:g}")
        try:
            yield
        finally:
            self._say("disarm")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()


def _watch(directory: Path) -> None:
    deadline: float | None = None
    buffered = b""
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _w, _x = select.select([0], [], [], left)
        if not ready:
            aborted = abort(directory)
            print(f"watchdog: test hangs, {aborted} FUSE connections aborted", file=sys.stderr, flush=True)
            deadline = None
            continue
        data = os.read(0, 4096)
        if not data:
            destroy(directory)
            return
        *lines, buffered = (buffered + data).split(b"\n")
        for line in lines:
            words = line.split()
            deadline = time.monotonic() + float(words[1]) if words[:1] == [b"arm"] else None


if __name__ == "__main__":
    _watch(Path(sys.argv[1]))
