"""One suite over every read path and every kind of source: a mount for each pair, and what it should show."""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.mounts import Mount, Mounts
from tests.servers import http_server, s3_server

MIB = 1 << 20
MTIME_S = 1_700_000_123
UID, GID = 1234, 2345
MANY = 20_000

READ_PATHS = ("passthrough", "openless", "daemon", "pyfuse3")
SOURCES = ("directory", "http", "s3")


def _bytes(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


# A "." in a 255-byte name keeps the web server from taking it for something special.
COMMON: Mapping[bytes, bytes] = {
    b"empty": b"",
    b"one-byte": b"x",
    b"small.txt": b"a small file\n",
    b"page": _bytes(1, 4096),
    b"page+1": _bytes(2, 4097),
    b"three-blocks.bin": _bytes(3, 3 * MIB + 17),
    b"large.bin": _bytes(4, 24 * MIB + 12345),
    b"with space.txt": b"space",
    "ünï-日本.txt".encode(): b"utf-8",
    b"l" * 251 + b".txt": b"longest name",
    b"sub/a": b"a",
    b"sub/deep/er/c": _bytes(5, 100_000),
    b"sub-way": b"not in sub",
    **{b"flat/f%03d" % n: _bytes(100 + n, 700 * n) for n in range(40)},
}
LOCAL_ONLY: Mapping[bytes, bytes] = {
    b"line\nbreak": b"newline",
    b"not-utf-8-\xff\xfe": b"raw bytes",
    b"tab\tand\"quote'": b"quotes",
}
LINKS: Mapping[bytes, bytes] = {
    b"link": b"small.txt",
    b"sub/up": b"../large.bin",
    b"dangling": b"nowhere/at/all",
    b"absolute": b"/etc/hostname",
}


@dataclass
class Case:
    """One mount. ``files``: path → bytes; ``directories`` without the root itself."""

    path: str
    source: str
    mount: Mount
    root: Path
    uri: str
    files: Mapping[bytes, bytes]
    links: Mapping[bytes, bytes] = field(default_factory=dict)
    many: bytes | None = None
    """A directory of MANY entries, where the source has one. Not among ``files``."""

    @property
    def directories(self) -> set[bytes]:
        found = set()
        for path in (*self.files, *self.links):
            while path := path.rpartition(b"/")[0]:
                found.add(path)
        return found

    def at(self, path: bytes) -> bytes:
        return os.fsencode(self.root) + b"/" + path


@dataclass
class Origin:
    """Where the files lie. ``spec`` is ``spec.source`` of a manifest."""

    uri: str
    spec: dict[str, Any]
    files: Mapping[bytes, bytes]
    links: Mapping[bytes, bytes]
    many: bytes | None
    secret: Mapping[str, str] = field(default_factory=dict)


def write_tree(root: Path, files: Mapping[bytes, bytes], links: Mapping[bytes, bytes]) -> None:
    """A directory with these files; everything has the one known time."""
    top = os.fsencode(root)
    for path, data in files.items():
        place = top + b"/" + path
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(data)
    for path, target in links.items():
        os.symlink(target, top + b"/" + path)
    for directory, names, others in os.walk(top, topdown=False):
        for name in (*others, *names):
            os.utime(directory + b"/" + name, (MTIME_S, MTIME_S), follow_symlinks=False)
    os.utime(top, (MTIME_S, MTIME_S))


@contextlib.contextmanager
def _directory(directory: Path) -> Iterator[Origin]:
    root = directory / "data"
    files = {**COMMON, **LOCAL_ONLY}
    many = root / "many"
    many.mkdir(parents=True)
    for number in range(MANY):
        (many / f"entry-{number:06d}").touch()
    write_tree(root, files, LINKS)
    yield Origin(str(root), {"type": "PVC", "uri": str(root)}, files, LINKS, b"many")


@contextlib.contextmanager
def _http(directory: Path) -> Iterator[Origin]:
    with http_server.nginx(directory) as server:
        write_tree(server.root / "data", COMMON, {})
        uri = f"{server.url}data/"
        yield Origin(uri, {"type": "HTTP", "uri": uri}, COMMON, {}, None)


@contextlib.contextmanager
def _s3(directory: Path) -> Iterator[Origin]:
    with s3_server.seaweedfs(directory) as server:
        for path, data in COMMON.items():
            server.put(f"data/{path.decode()}", data)
        uri = f"s3://{s3_server.BUCKET}/data"
        options = {"endpoint": server.endpoint, "region": "us-east-1"}
        spec = {"type": "S3", "uri": uri, "options": options}
        yield Origin(uri, spec, COMMON, {}, None, s3_server.credentials())


_ORIGINS: Mapping[str, Callable[[Path], contextlib.AbstractContextManager[Origin]]] = {
    "directory": _directory,
    "http": _http,
    "s3": _s3,
}


@pytest.fixture(scope="session")
def origins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Origin]]:
    """Started when first wanted, and kept."""
    with contextlib.ExitStack() as stack:
        started: dict[str, Origin] = {}

        def get(name: str) -> Origin:
            if name not in started:
                started[name] = stack.enter_context(_ORIGINS[name](tmp_path_factory.mktemp(f"origin-{name}")))
            return started[name]

        yield get


@pytest.fixture(scope="session", params=[f"{path}-{source}" for source in SOURCES for path in READ_PATHS])
def case(
    request: pytest.FixtureRequest, origins: Callable[[str], Origin], shared_mounts: Callable[[str], Mounts]
) -> Iterator[Case]:
    path, source = request.param.split("-")
    origin = origins(source)
    made = shared_mounts(f"conformance-{path}-{source}")
    spec: dict[str, Any] = {"source": origin.spec, "mountOptions": {"uid": UID, "gid": GID, "mode": "0775"}}
    if path != "pyfuse3":
        spec["readPath"] = path
    documents: list[dict[str, Any]] = []
    if origin.secret:
        spec["secretRef"] = "secret"
        documents.append({"apiVersion": "v1", "kind": "Secret", "stringData": dict(origin.secret)})
        documents[0]["metadata"] = {"name": "secret", "namespace": "team"}
    identity = {"name": "data", "namespace": "team"}
    documents.append({"apiVersion": "dsfs.dev/v1alpha1", "kind": "Dataset", "metadata": identity, "spec": spec})
    manifest = made.directory / "manifest.yaml"
    manifest.write_text("---\n".join(json.dumps(document) + "\n" for document in documents))
    session = "pyfuse3" if path == "pyfuse3" else "direct"
    try:
        mount = made.mount("-f", manifest, session=session, dataset="team/data")
        mount.wait_phase("READY", within_s=30)
        yield Case(path, source, mount, mount.root, origin.uri, origin.files, origin.links, origin.many)
    finally:
        problems = made.close()
    assert not problems, "\n".join(problems)
