"""The places that sources read from: real servers, each with a way to put, delete and kill."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import fsspec
import pytest

from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.sources.base import Source
from dsfs.sources.registry import build_source
from tests.servers import http_server, s3_server
from tests.servers.s3_server import BUCKET


@dataclass(frozen=True)
class Place:
    """Where files are put, and how a source for a folder of it is built."""

    type: SourceType
    uri: Callable[[str], str]
    put: Callable[[str, bytes], None]
    delete: Callable[[str], None]
    kill: Callable[[], None] | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    credentials: Mapping[str, str] = field(default_factory=dict)
    any_name: bool = True  # names with line breaks and the like can be put
    coarse_times: bool = False  # versions differ only when size or whole seconds do

    def source(self, folder: str) -> Source:
        spec = SourceSpec(type=self.type, uri=self.uri(folder), options=dict(self.options))
        return build_source(spec, self.credentials)


Make = Callable[[Path], AbstractContextManager[Place]]


def _s3(server: s3_server.S3Server, any_name: bool) -> Place:
    return Place(
        SourceType.S3,
        lambda folder: f"s3://{BUCKET}/{folder}",
        server.put,
        server.delete,
        server.kill,
        {"endpoint": server.endpoint, "region": "us-east-1"},
        s3_server.credentials(),
        any_name=any_name,
    )


@contextlib.contextmanager
def _seaweedfs(directory: Path) -> Iterator[Place]:
    with s3_server.seaweedfs(directory) as server:
        yield _s3(server, any_name=True)


@contextlib.contextmanager
def _rclone_s3(directory: Path) -> Iterator[Place]:
    with s3_server.rclone_s3(directory) as server:
        yield _s3(server, any_name=False)


@contextlib.contextmanager
def _nginx(directory: Path) -> Iterator[Place]:
    with http_server.nginx(directory) as server:
        yield _http(server, coarse_times=True)  # its ETag is made of whole seconds and the size


@contextlib.contextmanager
def _python(directory: Path) -> Iterator[Place]:
    with http_server.python_http(directory) as server:
        yield _http(server, coarse_times=True)


@contextlib.contextmanager
def _rclone_http(directory: Path) -> Iterator[Place]:
    with http_server.rclone_http(directory) as server:
        yield _http(server, any_name=False, coarse_times=True)


def _http(server: http_server.HttpServer, any_name: bool = True, coarse_times: bool = False) -> Place:
    return Place(
        SourceType.HTTP,
        lambda folder: f"{server.url}{folder}/",
        server.put,
        server.delete,
        server.kill,
        any_name=any_name,
        coarse_times=coarse_times,
    )


@contextlib.contextmanager
def _directory(directory: Path) -> Iterator[Place]:
    def put(path: str, data: bytes) -> None:
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    yield Place(SourceType.PVC, lambda folder: str(directory / folder), put, lambda path: (directory / path).unlink())


_memory_roots = itertools.count()


@contextlib.contextmanager
def _memory(_directory: Path) -> Iterator[Place]:
    memory = fsspec.filesystem("memory")
    root = f"/dsfs-test-{next(_memory_roots)}"

    def put(path: str, data: bytes) -> None:
        memory.makedirs(f"{root}/{path}".rpartition("/")[0], exist_ok=True)
        memory.pipe_file(f"{root}/{path}", data)

    try:
        yield Place(SourceType.FSSPEC, lambda f: f"memory:/{root}/{f}", put, lambda p: memory.rm_file(f"{root}/{p}"))
    finally:
        if memory.exists(root):
            memory.rm(root, recursive=True)


PLACES: Final[Mapping[str, Make]] = {
    "s3-seaweedfs": _seaweedfs,
    "s3-rclone": _rclone_s3,
    "http-nginx": _nginx,
    "http-python": _python,
    "http-rclone": _rclone_http,
    "directory": _directory,
    "fsspec-memory": _memory,
}


@pytest.fixture(scope="session")
def _running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Place]]:
    """Servers start once, when they are first wanted."""
    with contextlib.ExitStack() as stack:
        started: dict[str, Place] = {}

        def get(name: str) -> Place:
            if name not in started:
                started[name] = stack.enter_context(PLACES[name](tmp_path_factory.mktemp(name)))
            return started[name]

        yield get


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, _running: Callable[[str], Place]) -> Place:
    return _running(request.param)


_folders = itertools.count()


@pytest.fixture
def folder() -> str:
    """A folder of this test alone."""
    return f"case-{next(_folders)}"


@pytest.fixture(params=[name for name in PLACES if name not in ("directory", "fsspec-memory")])
def mortal_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A server of this test alone, to be killed."""
    with PLACES[request.param](tmp_path) as place:
        yield place
