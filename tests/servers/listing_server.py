"""S3 listings of as many keys as one likes, made up on the fly; an object's content is its key.

    python -m tests.servers.listing_server --port PORT --keys 1000000 --per-directory 1000 --wait-ms 20

As a process of its own it serves ``MadeUp`` keys; in a test, any sorted list, which may change between two requests.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, overload
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from tests.servers.process import HOST
from tests.servers.threaded import send, serving

BUCKET: Final = "bucket"
PAGE_KEYS: Final = 1000
_TIME: Final = "2026-03-03T10:00:00.000Z"
_HTTP_TIME: Final = "Tue, 03 Mar 2026 10:00:00 GMT"
_BEHIND: Final = "\U0010ffff"


class MadeUp(Sequence[str]):
    """``d000000/f000000`` and so on, in order; all in one directory with ``per_directory`` 0."""

    def __init__(self, count: int, per_directory: int) -> None:
        self._count = count
        self._each = per_directory or count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(self._count))]
        if not 0 <= at < self._count:
            raise IndexError(at)
        return f"d{at // self._each:06}/f{at % self._each:06}"


def filer_order(key: str) -> str:
    """Names of one directory together, as a server over a file system has them: ``a/x`` before ``a-b``."""
    return key.replace("/", "\0")


def _plain(key: str) -> str:
    return key


class ListingServer:
    def __init__(self, keys: Sequence[str], order: Callable[[str], str] = _plain, wait_s: float = 0.0) -> None:
        """``keys`` sorted by ``order``."""
        self.keys = keys
        self.order = order
        self.wait_s = wait_s
        self.sizes: dict[str, int] = {}
        """What the listing says of some, though it is not so."""
        self.on_list: Callable[[dict[str, str]], None] = lambda asked: None
        """Called with the query of each listing before it is answered; may change ``keys``."""
        self.ignores_start_after = False
        self.asked: list[dict[str, str]] = []
        """The queries of all listings, unless there are too many to keep."""
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = ""

    def page(self, asked: dict[str, str]) -> str:
        """The answer to ListObjectsV2."""
        keys, order = self.keys, self.order
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        limit = min(int(asked.get("max-keys") or PAGE_KEYS), PAGE_KEYS)
        after = asked.get("continuation-token") or ("" if self.ignores_start_after else asked.get("start-after", ""))
        at = bisect_left(keys, order(prefix), key=order)
        if after:
            at = max(at, bisect_right(keys, order(after), key=order))
        stop = bisect_left(keys, order(prefix) + _BEHIND, key=order) if prefix else len(keys)
        said, count, last = [], 0, ""
        while at < stop and count < limit:
            key = keys[at]
            count, end = count + 1, key.find(delimiter, len(prefix)) if delimiter else -1
            if end < 0:
                etag = hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()
                said.append(
                    f"<Contents><Key>{quote(key)}</Key><LastModified>{_TIME}</LastModified><ETag>&quot;{etag}&quot;</ETag>"
                    f"<Size>{self.sizes.get(key, len(key))}</Size><StorageClass>STANDARD</StorageClass></Contents>"
                )
                at, last = at + 1, key
            else:
                group = key[: end + 1]
                said.append(f"<CommonPrefixes><Prefix>{quote(group)}</Prefix></CommonPrefixes>")
                at, last = bisect_left(keys, order(group) + _BEHIND, key=order), group + _BEHIND
        more = f"<NextContinuationToken>{quote(last)}</NextContinuationToken>" if at < stop else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><Prefix>{quote(prefix)}</Prefix><KeyCount>{count}</KeyCount><MaxKeys>{limit}</MaxKeys>"
            f"<EncodingType>url</EncodingType><IsTruncated>{'true' if more else 'false'}</IsTruncated>"
            f"{more}{''.join(said)}</ListBucketResult>"
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: ListingServer

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        if bucket != BUCKET:
            send(self, 404, b"<Error><Code>NoSuchBucket</Code></Error>")
        elif key:
            self._object(key)
        else:
            self._listing(dict(parse_qsl(url.query, keep_blank_values=True)))

    def _listing(self, asked: dict[str, str]) -> None:
        state = self.state
        with state.lock:
            state.asked.append(asked)
            del state.asked[:-10_000]
            state.at_once += 1
            state.most_at_once = max(state.most_at_once, state.at_once)
            state.on_list(asked)
        try:
            if state.wait_s:
                time.sleep(state.wait_s)  # the way to a server far away
            asked["continuation-token"] = unquote(asked.get("continuation-token", ""))
            send(self, 200, state.page(asked).encode(), {"Content-Type": "application/xml"})
        finally:
            with state.lock:
                state.at_once -= 1

    def _object(self, key: str) -> None:
        at = bisect_left(self.state.keys, self.state.order(key), key=self.state.order)
        if at == len(self.state.keys) or self.state.keys[at] != key:
            send(self, 404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        data = key.encode()
        etag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        headers = {"ETag": etag, "Last-Modified": _HTTP_TIME}
        wanted = self.headers.get("Range", "")
        if not wanted:
            send(self, 200, data, headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1]
        place = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        send(self, 206, part, {**headers, "Content-Range": place})


@contextlib.contextmanager
def listing_server(keys: Sequence[str], order: Callable[[str], str] = _plain) -> Iterator[ListingServer]:
    """In threads of this process."""
    state = ListingServer(keys, order)
    with serving(type("Handler", (_Handler,), {"state": state})) as port:
        state.url = f"http://{HOST}:{port}"
        yield state


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.servers.listing_server", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--per-directory", type=int, default=1000)
    parser.add_argument("--wait-ms", type=float, default=0.0)
    args = parser.parse_args()
    state = ListingServer(MadeUp(args.keys, args.per_directory), wait_s=args.wait_ms / 1000)
    ThreadingHTTPServer((HOST, args.port), type("Handler", (_Handler,), {"state": state})).serve_forever()


if __name__ == "__main__":
    main()
