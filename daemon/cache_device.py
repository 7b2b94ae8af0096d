"""The block device under the cache: what it reads and writes, for the daemon or for readers whom the kernel serves."""

from __future__ import annotations

import os

import structlog

from daemon.keeping.mounting import mount_table
from dsfs import metrics

log = structlog.get_logger()

_SECTOR_BYTES = 512  # of /sys/block, whatever the device's own is


class CacheDevice:
    """Counts into the metrics from when it is made on; nothing where the cache lies on no block device."""

    def __init__(self, directory: str) -> None:
        self._stat = _stat_file_of(directory)
        self._name = os.path.basename(os.path.realpath(os.path.dirname(self._stat))) if self._stat else ""
        self._last = self._read()

    def count(self) -> None:
        """Add what happened since the last call."""
        now = self._read()
        if now is not None and self._last is not None:
            metrics.CACHE_DEVICE_READ_BYTES.labels(self._name).inc(max(0, now[0] - self._last[0]))
            metrics.CACHE_DEVICE_WRITTEN_BYTES.labels(self._name).inc(max(0, now[1] - self._last[1]))
        self._last = now

    def _read(self) -> tuple[int, int] | None:
        """Bytes read and written since the machine started."""
        if self._stat is None:
            return None
        try:
            with open(self._stat, encoding="ascii") as file:
                fields = file.read().split()
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            log.info("the cache's device is not watched any more", file=self._stat, reason=reason)
            self._stat = None
            return None
        return int(fields[2]) * _SECTOR_BYTES, int(fields[6]) * _SECTOR_BYTES  # Documentation/block/stat.rst


def _stat_file_of(directory: str) -> str | None:
    """Where the device's counters are. The device of a file system whose number is of its own making (btrfs, say) is
    looked up in the mount table."""
    device = os.stat(directory).st_dev
    if os.major(device) == 0:
        name = f"{os.major(device)}:{os.minor(device)}"
        source = next((mounted.source for mounted in mount_table() if mounted.dev == name), "")
        try:
            device = os.stat(source).st_rdev
        except OSError:
            return None
    path = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat"
    return path if os.path.exists(path) else None
