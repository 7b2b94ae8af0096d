"""What anybody may write into the sockets of a mount: no message makes its processes end, hang, or keep descriptors."""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.mounts import Mounts, clean_environment, eventually, runtime_dir_of
from tests.resilience.conftest import make_tree

EXAMPLES = 60
OPERATIONS = {  # all but "mount", which does as it is told
    *("hello", "standby", "stale", "forked", "ended", "state", "hold", "restart", "ready", "failed", "finished"),
    *("alive", "unmounted", "adopt", "look", "end", "unmount", "take"),
}
POSTS = {
    *("evict", "pin", "unpin", "verify", "resync", "apply", "delete", "warm", "clone", "credential", "checksums"),
    *("verify-file", "hint"),
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    *("name", "path", "source", "version", "pid", "status", "connections", "held", "ready", "finished", "started"),
    *("takes_over", "serving", "children", "dev", "state", "stale", "error"),
]
MESSAGE = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6).flatmap(
    lambda fields: st.sampled_from(sorted(OPERATIONS)).map(lambda op: json.dumps({"op": op, **fields}).encode())
)
RAW = (
    MESSAGE
    | MESSAGE.flatmap(lambda raw: st.integers(0, len(raw)).map(lambda cut: raw[:cut]))
    | st.binary(max_size=200)
    | st.sampled_from([b"", b"null", b"[]", b"[" * 60_000, b'{"op": {}}', b'{"op": "hello", "version": "x"}'])
)


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """One that lives alone and has mounted nothing; its pid and socket."""
    path = str(tmp_path / "keeper.sock")
    argv = [sys.executable, "-P", "-m", "daemon.keeper", "--alone", path, "30"]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(argv, stderr=log, env=clean_environment()) as process:
        try:
            eventually(lambda: os.path.exists(path), 20, "the keeper listens")
            yield process.pid, path
            assert process.poll() is None, (tmp_path / "log").read_text()
        finally:
            process.kill()


def connected(path: str) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.settimeout(20)
    link.connect(path)
    return link


def look(path: str) -> dict[str, Any]:
    """What the keeper says to somebody who makes sense."""
    with connected(path) as link:
        link.send(b'{"op": "look"}')
        answer = json.loads(link.recv(65536))
    assert isinstance(answer, dict)
    return answer


def talk(path: str, messages: list[tuple[bytes, int]]) -> None:
    """Each with so many descriptors."""
    with connected(path) as link:
        for raw, count in messages:
            ends = [end for _ in range(count) for end in os.pipe()]
            rights = array.array("i", ends[:count])
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if count else []
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it does not talk to us any more
                link.sendmsg([raw], ancillary)
            for end in ends:
                os.close(end)


def test_the_keepers_socket(keeper: tuple[int, str]) -> None:
    """Any JSON, truncated or not, that comes with no, one or several descriptors, or with a pipe for a /dev/fuse."""
    pid, path = keeper
    before = len(os.listdir(f"/proc/{pid}/fd"))

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.tuples(RAW, st.integers(0, 3)), min_size=1, max_size=6))
    def say(messages: list[tuple[bytes, int]]) -> None:
        talker = os.fork()  # whom the keeper takes for a server, it may have to end
        if not talker:
            status = 1
            try:
                talk(path, messages)
                status = 0
            finally:
                os._exit(status)
        _pid, status = os.waitpid(talker, 0)
        assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
        assert look(path)["pid"] == pid

    say()

    def few() -> bool:
        look(path)
        # what was handed over by name is held until somebody hands over another of that name, which is few
        return len(os.listdir(f"/proc/{pid}/fd")) <= before + EXAMPLES

    eventually(few, 20, "descriptors are given back")


def test_the_servers_control_socket(mounts: Mounts, tmp_path: Path) -> None:
    """Bytes that are no HTTP, and requests of the right shape with any body; the mount reads on."""
    source = make_tree(tmp_path / "source", files=4, large_mib=1)
    mount = mounts.mount(source)
    mount.expect_log("request|Bad|invalid|control")
    server = mount.server_pid
    control = str(runtime_dir_of(mount.mountpoint) / "control.sock")

    def request(verb: str, body: bytes) -> bytes:
        head = f"POST /api/v1/{verb} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    bodies = JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60)
    asked = st.builds(request, st.sampled_from(sorted(POSTS)), bodies)

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(asked | asked.map(lambda raw: raw[: len(raw) // 2]) | st.binary(min_size=1, max_size=300))
    def say(raw: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(20)
            link.connect(control)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                link.sendall(raw)
                link.shutdown(socket.SHUT_WR)
                while link.recv(65536):
                    pass

    say()
    assert mount.server_pid == server
    assert (mount.root / "large").read_bytes() == (source / "large").read_bytes()
