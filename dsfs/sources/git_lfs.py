"""Git LFS: objects by their sha256 through the batch API of a server, or from the directory of a local repository.

The API is git-lfs docs/api/batch.md; where it is asked: git_lfs_endpoint.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from dsfs.errors import (
    RetryLater,
    SourceChanged,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceUnavailable,
    SourceUnsupported,
)
from dsfs.ranges import ByteRange, KiB, MiB
from dsfs.sources.aiohttp_edge import chunks, harmless, origin_of, proxy_of, translated
from dsfs.sources.answers import body_place, check_not_coded, check_whole, copy_body, has_open_end, retry_after_s
from dsfs.sources.base import Buffer, Sink
from dsfs.sources.certificates import context
from dsfs.sources.git_lfs_endpoint import EARLY_S, Endpoint, Endpoints
from dsfs.sources.git_objects import Pointer
from dsfs.sources.git_program import GitProgram
from dsfs.sources.git_work import copy_file
from dsfs.sources.timeouts import Timeouts

MEDIA_TYPE: Final = "application/vnd.git-lfs+json"
BATCH_OBJECTS: Final = 100  # what GitHub takes in one request
GATHER_S: Final = 0.002
CHECKED_WHOLE_BYTES: Final = 8 * MiB
"""An object up to here that is read whole is compared with its sha256 before a byte of it is published."""
_ANSWER_MAX_BYTES: Final = 4 * MiB
_REDIRECTS_MAX: Final = 5


class _Action(NamedTuple):
    """Where an object can be had, until when (Unix seconds)."""

    href: str
    header: Mapping[str, str]
    expires_s: float


class LfsClient:
    """Objects of one repository. ``configured`` is the ``lfs.url`` of the .lfsconfig of commit ``configured_by``."""

    def __init__(self, program: GitProgram, timeouts: Timeouts) -> None:
        self.configured: str | None = None
        self.configured_by = ""
        self.requests = 0
        self._program = program
        self._timeouts = timeouts
        self._session: aiohttp.ClientSession | None = None
        self._actions: dict[str, _Action] = {}
        self._asked: dict[Pointer, asyncio.Future[_Action]] = {}
        self._batch: asyncio.Task[None] | None = None
        self._endpoints = Endpoints(program, timeouts)

    async def read(self, pointer: Pointer, wanted: ByteRange, sink: Sink) -> None:
        """See ``Source.read``. Raises SourceChanged when the server does not have the object (any more)."""
        address = self._program.access.address
        if self.configured is None and address.scheme == "file":
            return await self._read_file(pointer, wanted, sink)
        action = self._actions.get(pointer.sha256)
        known = action is not None and action.expires_s - EARLY_S > time.time()
        if action is None or not known:
            action = await self._ask(pointer)
        try:
            await self._get(action, pointer, wanted, sink)
        except (SourceRefused, SourceMissing) as error:
            self._actions.pop(pointer.sha256, None)
            if not known:
                gone = isinstance(error, SourceMissing)
                raise (SourceChanged(str(error)) if gone else error) from error
            await self._get(await self._ask(pointer), pointer, wanted, sink)  # it had been taken back early

    async def close(self) -> None:
        if self._batch is not None:
            self._batch.cancel()
            await asyncio.gather(self._batch, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    # -- a local repository ---------------------------------------------------------------------------------------

    async def _read_file(self, pointer: Pointer, wanted: ByteRange, sink: Sink) -> None:
        root, oid = self._program.access.address.directory, pointer.sha256
        for git_dir in (root, f"{root}/.git"):
            path = f"{git_dir}/lfs/objects/{oid[:2]}/{oid[2:4]}/{oid}"
            try:
                await copy_file(path, pointer.size_bytes, wanted, sink)
                return
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise SourceUnavailable(f"{path}: {os.strerror(error.errno or 0)}") from error
        raise SourceChanged(f"file://{root}: git-lfs has not fetched object {oid} there")

    # -- the batch API: those who ask at about the same time share one request ------------------------------------

    async def _ask(self, pointer: Pointer) -> _Action:
        future = self._asked.get(pointer)
        if future is None:
            future = self._asked[pointer] = asyncio.get_running_loop().create_future()
            if self._batch is None or self._batch.done():
                self._batch = asyncio.create_task(self._run_batches())
        return await asyncio.shield(future)

    async def _run_batches(self) -> None:
        await asyncio.sleep(GATHER_S)
        while self._asked:
            asked = dict(list(self._asked.items())[:BATCH_OBJECTS])
            error: Exception = SourceUnavailable(f"{self._program.access.address.shown}: the request was given up")
            try:
                await self._post_batch(asked)
            except Exception as failure:  # every waiter gets it, whatever it is
                error = failure
            finally:
                for pointer, future in asked.items():
                    del self._asked[pointer]
                    if not future.done():
                        future.set_exception(error)
                    future.exception()  # looked at: nobody may be waiting any more

    async def _post_batch(self, asked: Mapping[Pointer, asyncio.Future[_Action]]) -> None:
        endpoint = await self._endpoints.of(self.configured)
        url = f"{endpoint.url}/objects/batch"
        objects = [{"oid": pointer.sha256, "size": pointer.size_bytes} for pointer in asked]
        body = json.dumps({"operation": "download", "transfers": ["basic"], "hash_algo": "sha256", "objects": objects})
        found = {entry.get("oid"): entry for entry in (await self._post(url, endpoint.header, body)).get("objects", [])}
        for pointer, future in asked.items():
            try:
                action = self._action_of(found.get(pointer.sha256), pointer, url, endpoint)
                self._actions[pointer.sha256] = action
                future.set_result(action)
            except SourceError as error:
                future.set_exception(error)
        if len(self._actions) > 50_000:  # about 500 bytes each
            self._actions.clear()

    def _action_of(self, entry: Any, pointer: Pointer, url: str, endpoint: Endpoint) -> _Action:
        what = f"{_shown(url)}: LFS object {pointer.sha256}"
        if not isinstance(entry, dict):
            raise SourceUnavailable(f"{what} is not in the server's answer")
        if isinstance(error := entry.get("error"), dict):
            code = error.get("code")
            kinds = {404: SourceChanged, 410: SourceChanged, 401: SourceRefused, 403: SourceRefused}
            why = self._program.clean(str(error.get("message", "")))[:200]
            raise kinds.get(code if isinstance(code, int) else 0, SourceUnavailable)(f"{what}: {code} {why}")
        download = entry.get("actions", {}).get("download") if isinstance(entry.get("actions"), dict) else None
        if not isinstance(download, dict) or not isinstance(download.get("href"), str):
            raise SourceChanged(f"{what}: the server has nothing to download for it")
        href = urljoin(url, download["href"])
        header = {str(k): str(v) for k, v in (download.get("header") or {}).items()}
        if origin_of(href) == origin_of(endpoint.url) and not any(name.lower() == "authorization" for name in header):
            header |= endpoint.header  # as for the repository; never to another host
        expires_in = download.get("expires_in")
        lent_s = expires_in if isinstance(expires_in, int | float) and expires_in > 0 else 600.0
        return _Action(href, header, time.time() + lent_s)

    async def _post(self, url: str, header: Mapping[str, str], body: str) -> dict[str, Any]:
        sent = {"Accept": MEDIA_TYPE, "Content-Type": MEDIA_TYPE, **header}
        for last in (False, True):
            async with self._request("POST", url, sent, body) as answer:
                if answer.status == 401 and not last and (found := await self._endpoints.ask_helper(url)):
                    sent["Authorization"] = found
                    continue
                _raise_for(answer, url)
                check_whole(answer.status, _shown(url))
                raw = await _limited(answer, url)
            try:
                parsed = json.loads(raw)
            except ValueError as error:
                raise SourceUnavailable(f"{_shown(url)}: answered no JSON") from error
            if not isinstance(parsed, dict) or not isinstance(parsed.get("objects"), list):
                raise SourceUnavailable(f"{_shown(url)}: answered something else than LFS objects")
            return parsed
        raise SourceRefused(f"{_shown(url)}: refused")

    # -- requests -------------------------------------------------------------------------------------------------

    async def _get(self, action: _Action, pointer: Pointer, wanted: ByteRange, sink: Sink) -> None:
        what = f"{_shown(action.href)}: LFS object {pointer.sha256}"
        header = {**action.header, "Accept-Encoding": "identity"}
        whole = wanted.length == pointer.size_bytes
        if not whole:
            header["Range"] = f"bytes={wanted.start}-{wanted.stop - 1}"
        async with self._request("GET", action.href, header) as answer:
            _raise_for(answer, action.href)
            check_not_coded(answer.headers, what)
            content_range = answer.headers.get("Content-Range")
            place = body_place(answer.status, content_range, answer.content_length, pointer.size_bytes, wanted, what)
            into: Sink = sink
            checked = _Checked() if whole and pointer.size_bytes <= CHECKED_WHOLE_BYTES else None
            body, open_end = chunks(answer, _shown(action.href)), has_open_end(answer.headers)
            await copy_body(body, place, wanted, checked or into, what, open_end=open_end)
            if checked is not None:
                if checked.sha256.hexdigest() != pointer.sha256:
                    raise SourceUnavailable(f"{what}: other bytes came")
                await sink.write(0, b"".join(checked.pieces))

    @asynccontextmanager
    async def _request(
        self, method: str, url: str, header: Mapping[str, str], body: str | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Redirects are followed here: what is meant for one host must not reach another."""
        target, sent = url, dict(header)
        for _ in range(_REDIRECTS_MAX + 1):
            self.requests += 1
            try:
                answer = await self._opened().request(
                    method,
                    URL(target, encoded=True),
                    headers=sent,
                    data=body,
                    allow_redirects=False,
                    proxy=proxy_of(target),
                )
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                raise translated(error, _shown(url)) from harmless(error)
            try:
                following = answer.headers.get("Location") if answer.status in (301, 302, 303, 307, 308) else None
                if following is None:
                    yield answer
                    return
            finally:
                answer.close() if not answer.content.at_eof() else answer.release()
            before, target = target, str(URL(urljoin(target, following)).with_fragment(None))
            if urlsplit(target).scheme not in ("http", "https"):
                raise SourceUnsupported(f"{_shown(url)} leads to something that is not HTTP")
            if origin_of(target) != origin_of(before):
                plain = ("accept", "accept-encoding", "content-type", "range")
                sent = {name: value for name, value in sent.items() if name.lower() in plain}
        raise SourceUnavailable(f"{_shown(url)} leads in a circle (more than {_REDIRECTS_MAX} redirects)")

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=64, ssl=context(os.environ.get("GIT_SSL_CAINFO"))),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._timeouts.connect_s, sock_read=self._timeouts.idle_s
                ),
                auto_decompress=False,
                read_bufsize=256 * KiB,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


class _Checked:
    """A sink that keeps a whole object until its hash is known."""

    def __init__(self) -> None:
        self.pieces: list[Buffer] = []
        self.sha256 = hashlib.sha256()

    async def write(self, _offset: int, data: Buffer) -> None:
        self.pieces.append(data)
        self.sha256.update(data)


async def _limited(answer: aiohttp.ClientResponse, url: str) -> bytes:
    raw = bytearray()
    async for chunk in chunks(answer, _shown(url)):
        raw += chunk
        if len(raw) > _ANSWER_MAX_BYTES:
            raise SourceUnavailable(f"{_shown(url)}: the answer is too long")
    return bytes(raw)


def _shown(url: str) -> str:
    """Without the query, where signed URLs have their signature, and without who is to log in."""
    scheme, slashes, rest = url.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}"


def _raise_for(answer: aiohttp.ClientResponse, url: str) -> None:
    status, shown = answer.status, f"{_shown(url)}: HTTP {answer.status}"
    if status in (200, 206):
        return
    if status in (401, 403, 407):
        raise SourceRefused(f"{shown} (give token, or username and password, in a Secret)")
    if status in (404, 410):
        raise SourceMissing(f"{shown}, it is not there")
    if status == 416:
        raise SourceChanged(f"{shown}, it is shorter than it was listed")
    if status in (429, 503):
        raise RetryLater(f"{shown}, the server asks for patience", retry_after_s(answer.headers))
    raise SourceUnavailable(shown)
