"""A sample dataset: made here, served over HTTP on loopback, mounted, and what to try with it."""

from __future__ import annotations

import functools
import http.server
import os
import random
import subprocess
import sys

HTTP = "127.0.0.1:9111"
HOME = f"/tmp/dsfs-sample-{os.getuid()}"
CLASSES, FILES_PER_CLASS, FILE_BYTES = 10, 100, 110_000  # like a folder of images
SHARD_BYTES = 64 << 20  # like a shard of tokens


def make_files(root: str) -> None:
    """The same bytes on every machine."""
    rng = random.Random(1)
    for number in range(CLASSES):
        directory = f"{root}/images/class-{number:02}"
        os.makedirs(directory, exist_ok=True)
        for image in range(FILES_PER_CLASS):
            with open(f"{directory}/{image:04}.jpg", "wb") as file:
                file.write(rng.randbytes(FILE_BYTES))
    with open(f"{root}/tokens.bin", "wb") as file:
        for _ in range(SHARD_BYTES >> 20):
            file.write(rng.randbytes(1 << 20))


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a directory, and does not tell about it."""

    def log_message(self, *args: object) -> None:
        return


def serve(root: str) -> tuple[int, int]:
    """A server in a process of its own: (pid, port)."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=root))
    pid = os.fork()
    if pid == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        server.serve_forever()
    server.server_close()
    return pid, server.server_address[1]


def main(dsfs: str) -> int:
    root, mountpoint = f"{HOME}/source", f"{HOME}/data"
    if not os.path.exists(f"{root}/tokens.bin"):
        make_files(root)
    os.makedirs(mountpoint, exist_ok=True)
    pid, port = serve(root)
    uri = f"http://127.0.0.1:{port}/"
    command = [dsfs, "mount", uri, mountpoint, "--cache-dir", f"{HOME}/cache", "--http", HTTP]
    if subprocess.run(command, check=False).returncode != 0:
        os.kill(pid, 15)
        return 1
    print(
        f"""
{uri} is mounted at {mountpoint}

Try:
  ls {mountpoint}/images
  time cat {mountpoint}/tokens.bin > /dev/null      (the second time it comes from the cache)
  time cat {mountpoint}/images/*/* > /dev/null
  {dsfs} status
  curl -s http://{HTTP}/metrics | grep ^dsfs_

Stop:
  {dsfs} unmount {mountpoint} && kill {pid} && rm -r {HOME}"""
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
