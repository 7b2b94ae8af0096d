"""The keeper's mounts, before any server has spoken to the kernel."""

from __future__ import annotations

import os
from pathlib import Path

from daemon.keeping.mounting import detach, device_of, mount_fuse, mount_table


def test_read_ahead_is_raised_by_who_mounts(tmp_path: Path) -> None:
    """A server in a container has a /sys that it cannot write."""
    fd = mount_fuse(str(tmp_path), "dsfs:test")
    try:
        dev = device_of(fd, str(tmp_path))
        assert [mounted.source for mounted in mount_table() if mounted.dev == dev] == ["dsfs:test"]
        assert Path(f"/sys/class/bdi/{dev}/read_ahead_kb").read_text() == "1024\n"
    finally:
        detach(str(tmp_path))
        os.close(fd)
    assert str(tmp_path) not in [mounted.path for mounted in mount_table()]
