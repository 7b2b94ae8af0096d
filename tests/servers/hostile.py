"""A web server that misbehaves as told, one request at a time. Speaks HTTP and as much of S3 as reading takes.

It runs in a thread with an event loop of its own, so that tests may use it from any loop. For each path there is a list
of behaviours that the next GETs use up; when it is empty, the server behaves.
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import hashlib
import re
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tests.servers.process import HOST
from tests.servers.streams import Connections, listening

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
LAST_MODIFIED = "Tue, 03 Mar 2026 10:00:00 GMT"


@dataclass(frozen=True)
class Answer:
    """What a good server would say; behaviours change it. ``content_length`` None: what the body has."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    content_length: int | None = None
    reset_after: int | None = None  # bytes of the body, then RST
    stall_after: int | None = None  # bytes of the body, then nothing until the server stops
    silent: bool = False  # not even a head, until the server stops

    def with_headers(self, **changed: str | None) -> Answer:
        """Underscores stand for dashes; None takes a header away."""
        headers = dict(self.headers)
        for key, value in changed.items():
            name = key.replace("_", "-")
            headers.pop(name, None)
            if value is not None:
                headers[name] = value
        return replace(self, headers=headers)


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    headers: Mapping[str, str]
    range: tuple[int, int] | None
    """First and last byte, as HTTP counts."""


Behaviour = Callable[[Asked, bytes, Answer], Answer]


class Gate:
    """Holds one response after so many bytes of its body until ``open``."""

    def __init__(self, after_bytes: int) -> None:
        self.after_bytes = after_bytes
        self.reached = threading.Event()
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    def wait_opened(self) -> None:
        self._opened.wait(150)


@dataclass
class Hostile:
    """The handle. ``files`` may be changed while it runs; counts are by path."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    sent_bytes: Counter[str] = field(default_factory=Counter)
    asked: list[Asked] = field(default_factory=list)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    connections: Connections = field(init=False)
    _behaviours: defaultdict[str, deque[Behaviour]] = field(default_factory=lambda: defaultdict(deque))
    _always: dict[str, Behaviour] = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)
    _gates: defaultdict[str, deque[Gate]] = field(default_factory=lambda: defaultdict(deque))

    def behave(self, path: str, *behaviours: Behaviour) -> None:
        """For the next GETs of this path, one each."""
        self._behaviours[path].extend(behaviours)

    def always(self, path: str, behaviour: Behaviour) -> None:
        """For each GET and HEAD of this path."""
        self._always[path] = behaviour

    def hang_up(self) -> None:
        """Close every connection, which its other side may think idle."""
        for task in list(self.connections.tasks):
            task.get_loop().call_soon_threadsafe(task.cancel)

    def gate(self, path: str, after_bytes: int) -> Gate:
        """For the next GET of this path."""
        gate = Gate(after_bytes)
        self.gates.append(gate)
        self._gates[path].append(gate)
        return gate

    def answer(self, asked: Asked) -> Answer:
        data = self.files.get(asked.path)
        if data is None:
            answer = Answer(404, {}, b"")
            data = b""
        else:
            answer = good(asked, data)
        if asked.path in self._always:
            answer = self._always[asked.path](asked, data, answer)
        if asked.method == "GET" and self._behaviours[asked.path]:
            answer = self._behaviours[asked.path].popleft()(asked, data, answer)
        return answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (asked := await _request(reader)) is not None:
                self.requests[asked.path] += 1
                self.asked.append(asked)
                if not await self._send(asked, self.answer(asked), writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the other side went; that is its right

    async def _send(self, asked: Asked, answer: Answer, writer: asyncio.StreamWriter) -> bool:
        """False when the connection is of no use any more."""
        if answer.silent:
            await self.stopping.wait()
            return False
        length = len(answer.body) if answer.content_length is None else answer.content_length
        lines = [f"HTTP/1.1 {answer.status} X"]
        if "Transfer-Encoding" not in answer.headers:
            lines.append(f"Content-Length: {length}")
        lines += [f"{key}: {value}" for key, value in answer.headers.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        body = b"" if asked.method == "HEAD" else answer.body
        sent = 0
        if asked.method == "GET" and self._gates[asked.path]:
            gate = self._gates[asked.path].popleft()
            sent = min(gate.after_bytes, len(body))
            writer.write(body[:sent])
            await writer.drain()
            gate.reached.set()
            await asyncio.to_thread(gate.wait_opened)
        stop = len(body)
        for limit in (answer.reset_after, answer.stall_after):
            stop = stop if limit is None or asked.method == "HEAD" else min(stop, limit)
        writer.write(body[sent:stop])
        await writer.drain()
        self.sent_bytes[asked.path] += stop
        if answer.stall_after is not None:
            await self.stopping.wait()
        if answer.reset_after is not None:
            writer.transport.abort()
            return False
        return asked.method == "HEAD" or answer.content_length in (None, len(body))


def good(asked: Asked, data: bytes) -> Answer:
    """What RFC 9110 wants."""
    headers = {"ETag": etag_of(data), "Last-Modified": LAST_MODIFIED, "Content-Type": "application/octet-stream"}
    if asked.headers.get("if-match", etag_of(data)) != etag_of(data):
        return Answer(412, headers, b"")
    if asked.range is None:
        return Answer(200, {**headers, "Accept-Ranges": "bytes"}, data)
    first, last = asked.range
    if first >= len(data):
        return Answer(416, {**headers, "Content-Range": f"bytes */{len(data)}"}, b"")
    body = data[first : last + 1]
    return Answer(206, {**headers, "Content-Range": f"bytes {first}-{first + len(body) - 1}/{len(data)}"}, body)


@functools.lru_cache(64)  # a request for a piece of a large file must not cost a look at all of it
def etag_of(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


# -- behaviours -------------------------------------------------------------------------------------------------------


def other_range(asked: Asked, data: bytes, answer: Answer) -> Answer:
    """A byte further than asked, and honest about it."""
    first, last = asked.range or (0, len(data) - 1)
    shifted = (first + 1, min(last + 1, len(data) - 1))
    return good(replace(asked, range=shifted), data)


def other_bytes_count(asked: Asked, data: bytes, answer: Answer) -> Answer:
    """Half of what was asked, and honest about it."""
    first, last = asked.range or (0, len(data) - 1)
    return good(replace(asked, range=(first, (first + last) // 2)), data)


def whole_for_range(asked: Asked, data: bytes, answer: Answer) -> Answer:
    """200 with everything: allowed, ranges are optional."""
    return good(replace(asked, range=None), data)


def part_under_200(asked: Asked, data: bytes, answer: Answer) -> Answer:
    """The right part and Content-Range under the wrong status, as `rclone serve s3` does."""
    return replace(answer, status=200)


def part_under_200_unsaid(asked: Asked, data: bytes, answer: Answer) -> Answer:
    """The right part under 200 and nothing that says so."""
    return replace(answer, status=200).with_headers(Content_Range=None)


def part_for_whole(asked: Asked, data: bytes, answer: Answer) -> Answer:
    """Half of the bytes, and honest about it, though all of them were asked for."""
    return answer if asked.range else good(replace(asked, range=(0, len(data) // 2)), data)


def empty_head(asked: Asked, data: bytes, answer: Answer) -> Answer:
    """To a HEAD the length of what is sent, none, as frameworks do that know no HEAD; a 416 of nothing else."""
    if asked.method == "HEAD":
        return replace(answer, body=b"")
    return Answer(416, {"Content-Range": f"bytes */{len(data)}"}, b"") if answer.status == 416 else answer


def no_content_range(asked: Asked, data: bytes, answer: Answer) -> Answer:
    return answer.with_headers(Content_Range=None)


def wrong_total(asked: Asked, data: bytes, answer: Answer) -> Answer:
    first, last = asked.range or (0, 0)
    return answer.with_headers(Content_Range=f"bytes {first}-{last}/{len(data) + 1}")


def nonsense_range(asked: Asked, data: bytes, answer: Answer) -> Answer:
    return answer.with_headers(Content_Range="bytes banana")


def short_body(asked: Asked, data: bytes, answer: Answer) -> Answer:
    """Fewer bytes than announced, then the end of the connection."""
    return replace(answer, body=answer.body[:-7], content_length=len(answer.body))


def short_length(asked: Asked, data: bytes, answer: Answer) -> Answer:
    """Content-Length and body shorter than the Content-Range says."""
    return replace(answer, body=answer.body[:-7])


def compressed(asked: Asked, data: bytes, answer: Answer) -> Answer:
    return replace(answer, body=gzip.compress(answer.body)).with_headers(Content_Encoding="gzip")


def stored_compressed(asked: Asked, data: bytes, answer: Answer) -> Answer:
    """The bytes of the file are compressed ones, and the server says so whatever it is asked for."""
    return answer.with_headers(Content_Encoding="gzip")


def as_long_as_compressed(asked: Asked, data: bytes, answer: Answer) -> Answer:
    """Compressed on its way, and by chance as long as what it was made of; a HEAD says nothing of it."""
    if asked.method == "HEAD":
        return answer
    packed = bytes(each ^ 1 for each in answer.body)
    return replace(answer, body=packed).with_headers(Content_Encoding="gzip")


def chunked(asked: Asked, data: bytes, answer: Answer) -> Answer:
    """In chunks, and without a length: allowed."""
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(answer.body), answer.body) if answer.body else b"0\r\n\r\n"
    return replace(answer, body=body).with_headers(Transfer_Encoding="chunked")


def chunked_and_longer(asked: Asked, data: bytes, answer: Answer) -> Answer:
    """More bytes than the Content-Range says, and no length."""
    return chunked(asked, data, replace(answer, body=answer.body + b"more"))


def chunked_and_longer_than_said(asked: Asked, data: bytes, answer: Answer) -> Answer:
    """More bytes than the Content-Range and a Content-Length say, which chunks overrule (RFC 9112, 6.3)."""
    return chunked_and_longer(asked, data, answer).with_headers(Content_Length=str(len(answer.body)))


def compressed_on_its_way(asked: Asked, data: bytes, answer: Answer) -> Answer:
    packed = replace(answer, body=gzip.compress(answer.body, 0))
    return chunked(asked, data, packed).with_headers(Transfer_Encoding="gzip, chunked")


def reset_midway(asked: Asked, data: bytes, answer: Answer) -> Answer:
    return replace(answer, reset_after=len(answer.body) // 2)


def stall_midway(asked: Asked, data: bytes, answer: Answer) -> Answer:
    return replace(answer, stall_after=len(answer.body) // 2)


def stall_at_once(asked: Asked, data: bytes, answer: Answer) -> Answer:
    return replace(answer, stall_after=0)


def silence(asked: Asked, data: bytes, answer: Answer) -> Answer:
    """Not a word, also to a HEAD."""
    return replace(answer, silent=True)


def other_etag(asked: Asked, data: bytes, answer: Answer) -> Answer:
    """Another version under the name, from a server that does not look at If-Match."""
    return answer.with_headers(ETag='"another"')


def other_version(asked: Asked, data: bytes, answer: Answer) -> Answer:
    """Another version of the same length, headers and all; If-Match is not looked at."""
    changed = data.translate(bytes(range(255, -1, -1)))
    headers = {key: value for key, value in asked.headers.items() if key != "if-match"}
    return good(replace(asked, headers=headers), changed)


def redirect_to_itself(asked: Asked, data: bytes, answer: Answer) -> Answer:
    return Answer(302, {"Location": asked.path}, b"")


def status(code: int, **headers: str) -> Behaviour:
    """Only this status, with headers (underscores stand for dashes)."""

    def behave(asked: Asked, data: bytes, answer: Answer) -> Answer:
        return Answer(code, {key.replace("_", "-"): value for key, value in headers.items()}, b"")

    return behave


# -- running ----------------------------------------------------------------------------------------------------------


async def _request(reader: asyncio.StreamReader) -> Asked | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, target, _version = head[0].split(" ", 2)
    headers = {
        key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in head[1:] if line)
    }
    match = _RANGE.fullmatch(headers.get("range", ""))
    return Asked(method, target.partition("?")[0], headers, (int(match[1]), int(match[2])) if match else None)


@contextmanager
def hostile() -> Iterator[Hostile]:
    """A server on a free port, in a thread that is gone behind the block."""
    server = Hostile()
    ready: threading.Event = threading.Event()
    stop: list[Callable[[], object]] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with listening(server.serve, 2**20) as (port, server.connections):
            server.url = f"http://{HOST}:{port}/"
            stop.append(lambda: loop.call_soon_threadsafe(server.stopping.set))
            ready.set()
            await server.stopping.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="hostile-server")
    thread.start()
    try:
        assert ready.wait(10)
        yield server
    finally:
        for gate in server.gates:
            gate.open()
        for call in stop:
            call()
        thread.join(10)
        assert not thread.is_alive()
