"""Who is compared: each shows the origin's tree at a directory, with an empty cache on the same disk."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data import empty

BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class S3Origin:
    """A bucket at an endpoint on loopback, and the keys of the server that was started for it."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "RCLONE_CONFIG_ORIGIN_TYPE": "s3",
            "RCLONE_CONFIG_ORIGIN_PROVIDER": "Other",
            "RCLONE_CONFIG_ORIGIN_ENDPOINT": self.endpoint,
            "RCLONE_CONFIG_ORIGIN_ACCESS_KEY_ID": self.access_key,
            "RCLONE_CONFIG_ORIGIN_SECRET_ACCESS_KEY": self.secret_key,
        }


@contextlib.contextmanager
def dsfs(origin: S3Origin, work: Path, read_path: str, session: str = "direct") -> Iterator[Path]:
    """dsfs with one read path, from a manifest."""
    mountpoint, cache = empty(work / "mnt"), empty(work / "cache")
    manifest = work / "dataset.yaml"
    manifest.write_text(
        json.dumps(
            {
                "apiVersion": "dsfs.dev/v1alpha1",
                "kind": "Dataset",
                "metadata": {"name": "data", "namespace": "bench"},
                "spec": {
                    "source": {
                        "type": "S3",
                        "uri": f"s3://{origin.bucket}",
                        "options": {"endpoint": origin.endpoint, "region": "us-east-1"},
                    },
                    "readPath": read_path,
                },
            }
        )
    )
    command = [BIN / "dsfs", "mount", "-f", manifest, mountpoint, "--cache-dir", cache, "--session", session]
    subprocess.run(command, check=True, env=origin.environment())
    try:
        yield mountpoint / "bench/data"
    finally:
        subprocess.run([BIN / "dsfs", "unmount", mountpoint], check=True)


@contextlib.contextmanager
def rclone(origin: S3Origin, work: Path) -> Iterator[Path]:
    """rclone mount with its full cache, and attributes that stay as long as ours."""
    mountpoint, cache = empty(work / "mnt"), empty(work / "cache")
    command = [BIN / "rclone", "mount", f"ORIGIN:{origin.bucket}", mountpoint, "--read-only", "--vfs-cache-mode=full"]
    command += [f"--cache-dir={cache}", "--dir-cache-time=24h", "--attr-timeout=24h", "--vfs-fast-fingerprint"]
    process = subprocess.Popen(command, env=origin.environment(), stderr=subprocess.DEVNULL)
    try:
        while not os.path.ismount(mountpoint):
            if process.poll() is not None:
                raise RuntimeError("rclone mount did not start")
            time.sleep(0.05)
        yield mountpoint
    finally:
        subprocess.run(["umount", "-l", mountpoint], check=True)
        process.terminate()
        process.wait()


@contextlib.contextmanager
def raw(source: Path) -> Iterator[Path]:
    """The files themselves, on the disk that the caches lie on."""
    yield source
