"""A tree of files on a hostile server, with an index page for each directory, and what was asked for of it."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping

from tests.mounts import Mount
from tests.servers.hostile import Answer, Asked, Hostile


def put_tree(server: Hostile, files: Mapping[str, bytes], below: str = "/data/") -> str:
    """Serve files below a path; the URI of that."""
    names: defaultdict[str, set[str]] = defaultdict(set)
    for path, data in files.items():
        server.files[below + path] = data
        parts = path.split("/")
        for depth, name in enumerate(parts):
            directory = "".join(f"{part}/" for part in parts[:depth])
            names[directory].add(name if depth == len(parts) - 1 else f"{name}/")
    for directory, children in names.items():
        links = "".join(f'<a href="{child}">{child}</a>\n' for child in sorted(children))
        server.files[below + directory] = f"<html><body>\n{links}</body></html>".encode()
        server.always(below + directory, as_html)
    return server.url.rstrip("/") + below


def as_html(_asked: Asked, _data: bytes, answer: Answer) -> Answer:
    return answer.with_headers(Content_Type="text/html")


def gets(server: Hostile, below: str = "/data/") -> Counter[str]:
    """How often the bytes of each file were asked for; index pages do not count."""
    return Counter(
        asked.path.removeprefix(below)
        for asked in list(server.asked)
        if asked.method == "GET" and asked.path.startswith(below) and not asked.path.endswith("/")
    )


def assert_each_came_once(mount: Mount, server: Hostile) -> None:
    """But for what was late, on a machine that does much else, and asked for once more."""
    asked = gets(server)
    late = mount.sum_of("dsfs_origin_hedged_requests_total")
    assert sum(asked.values()) - late == len(asked), asked


def some_files(number: int, size: int = 20_000, directory: str = "d") -> dict[str, bytes]:
    return {f"{directory}/f{each:03d}": os.urandom(size) for each in range(number)}
