"""Who is compared: each shows the origin's tree at a directory, with an empty cache on the same disk."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.data import fresh
from tests.manifests import dataset, write_manifests
from tests.mounts import clean_environment, eventually

BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class S3Origin:
    """A bucket at an endpoint on loopback, and the keys of the server that was started for it."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str

    type: ClassVar = "S3"

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}"

    @property
    def options(self) -> dict[str, str]:
        """Of ``spec.source`` in a manifest."""
        return {"endpoint": self.endpoint, "region": "us-east-1"}

    @property
    def remote(self) -> list[str]:
        """What rclone calls it."""
        return [f"ORIGIN:{self.bucket}"]

    def environment(self) -> dict[str, str]:
        return {
            **clean_environment(),
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

    uri: str

    type: ClassVar = "HTTP"
    options: ClassVar[dict[str, str]] = {}

    @property
    def remote(self) -> list[str]:
        return [":http:", f"--http-url={self.uri}"]

    def environment(self) -> dict[str, str]:
        return clean_environment()


Origin = S3Origin | HttpOrigin


@contextlib.contextmanager
def dsfs(origin: Origin, work: Path, read_path: str, session: str = "direct") -> Iterator[Path]:
    """dsfs with one read path, from a manifest; "auto" is what it chooses itself."""
    mountpoint, cache = fresh(work, "mnt"), fresh(work, "cache")
    document = dataset("data", origin.uri, "bench", origin.type, source={"options": origin.options}, readPath=read_path)
    manifest = write_manifests(work / "dataset.yaml", document)
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
        # in the foreground, where its end is seen, rclone tells nobody that it has mounted
        eventually(lambda: os.path.ismount(mountpoint) or process.poll() is not None, 60.0, "rclone mounts")
        if process.poll() is not None:
            raise RuntimeError("rclone mount did not start")
        yield mountpoint
    finally:
        subprocess.run(["umount", "-l", mountpoint], check=True)
        process.terminate()
        process.wait()


@contextlib.contextmanager
def juicefs(origin: S3Origin, work: Path, source: Path) -> Iterator[Path]:
    """JuiceFS with its metadata in SQLite. It reads what was written through it only, so the files are first copied
    into a volume of its own in the same bucket; that is not measured, and the cache is a fresh one."""
    meta = work / "juicefs.db"
    environment = {**os.environ, "ACCESS_KEY": origin.access_key, "SECRET_KEY": origin.secret_key}
    if not meta.exists():
        bucket = f"{origin.endpoint}/{origin.bucket}"
        _juicefs("format", "--storage=s3", f"--bucket={bucket}", f"sqlite3://{meta}", "bench", env=environment)
        with _juicefs_mounted(meta, work, "--no-usage-report", env=environment) as writable:
            subprocess.run(["cp", "-r", f"{source}/.", writable], check=True)
    options = ("--read-only", "--attr-cache=86400", "--entry-cache=86400", "--dir-entry-cache=86400")
    with _juicefs_mounted(meta, work, *options, "--no-usage-report", env=environment) as mountpoint:
        yield mountpoint


def _juicefs(*arguments: str, env: dict[str, str]) -> None:
    subprocess.run([BIN / "juicefs", *arguments], check=True, env=env, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def _juicefs_mounted(meta: Path, work: Path, *options: str, env: dict[str, str]) -> Iterator[Path]:
    mountpoint, cache = fresh(work, "mnt"), fresh(work, "cache")
    _juicefs("mount", "-d", f"--cache-dir={cache}", *options, f"sqlite3://{meta}", str(mountpoint), env=env)
    try:
        yield mountpoint
    finally:
        _juicefs("umount", str(mountpoint), env=env)


@contextlib.contextmanager
def s3fs(origin: S3Origin, work: Path) -> Iterator[Path]:
    """s3fs-fuse with its cache of whole files."""
    mountpoint, cache = fresh(work, "mnt"), fresh(work, "cache")
    options = [
        "ro",
        f"url={origin.endpoint}",
        "use_path_request_style",
        f"use_cache={cache}",
        "stat_cache_expire=86400",
    ]
    environment = {**os.environ, "AWSACCESSKEYID": origin.access_key, "AWSSECRETACCESSKEY": origin.secret_key}
    subprocess.run(["s3fs", origin.bucket, mountpoint, "-o", ",".join(options)], check=True, env=environment)
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", "-l", mountpoint], check=True)


@contextlib.contextmanager
def raw(source: Path) -> Iterator[Path]:
    """The files themselves, on the disk that the caches lie on."""
    yield source
