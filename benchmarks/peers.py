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

from benchmarks.data import fresh

BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class S3Origin:
    """A bucket at an endpoint on loopback, and the keys of the server that was started for it."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str

    @property
    def source(self) -> dict[str, object]:
        """``spec.source`` of a manifest."""
        return {
            "type": "S3",
            "uri": f"s3://{self.bucket}",
            "options": {"endpoint": self.endpoint, "region": "us-east-1"},
        }

    @property
    def remote(self) -> list[str]:
        """What rclone calls it."""
        return [f"ORIGIN:{self.bucket}"]

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


@dataclass(frozen=True, slots=True)
class HttpOrigin:
    """A directory index on loopback."""

    url: str

    @property
    def source(self) -> dict[str, object]:
        return {"type": "HTTP", "uri": self.url}

    @property
    def remote(self) -> list[str]:
        return [":http:", f"--http-url={self.url}"]

    def environment(self) -> dict[str, str]:
        return dict(os.environ)


Origin = S3Origin | HttpOrigin


@contextlib.contextmanager
def dsfs(origin: Origin, work: Path, read_path: str, session: str = "direct") -> Iterator[Path]:
    """dsfs with one read path, from a manifest."""
    mountpoint, cache = fresh(work, "mnt"), fresh(work, "cache")
    manifest = work / "dataset.yaml"
    manifest.write_text(
        json.dumps(
            {
                "apiVersion": "dsfs.dev/v1alpha1",
                "kind": "Dataset",
                "metadata": {"name": "data", "namespace": "bench"},
                "spec": {"source": origin.source, "readPath": read_path},
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
def rclone(origin: Origin, work: Path) -> Iterator[Path]:
    """rclone mount with its full cache, and attributes that stay as long as ours."""
    mountpoint, cache = fresh(work, "mnt"), fresh(work, "cache")
    command = [BIN / "rclone", "mount", *origin.remote[:1], mountpoint, *origin.remote[1:]]
    command += ["--read-only", "--vfs-cache-mode=full"]
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
