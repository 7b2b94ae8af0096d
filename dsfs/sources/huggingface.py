"""``hf://datasets/ORG/NAME[@REVISION][/dir]``, ``hf://ORG/NAME``, ``huggingface://ORG/NAME``: a repository of a hub.

A revision is resolved to its commit once; all is listed and read at that commit. Version tag: ``lfs:SHA256`` or
``git:OID``, which name content and not a place, so that the next commit shares what it did not change. Files that the
hub keeps in Xet are read through its bridge: ``resolve`` answers who does not speak Xet with a redirect to plain bytes
that honour ranges.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from cachetools import LRUCache

from dsfs.errors import (
    RetryLater,
    SourceChanged,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceUnavailable,
    first_of,
)
from dsfs.manifest.schema import SourceSpec
from dsfs.model import Kind, ListingPage, SourceObject, path_parts
from dsfs.ranges import ByteRange
from dsfs.sources.base import Sink
from dsfs.sources.digest import Digest, git_blob
from dsfs.sources.hub import Credentials, HubClient, Token, TokenFile, checked_endpoint, environment, read_json
from dsfs.sources.hub_address import HubAddress, hugging_face_address
from dsfs.sources.hub_listing import Shown, any_shown, directory_pages, tree_pages
from dsfs.sources.hub_read import HubReader, patience_s
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS, Timeouts

ENDPOINT: Final = "https://huggingface.co"
EXPANDED_FILES_MAX: Final = 1000
"""Up to so many files each has the date of its own last commit. The hub gives 50 a page with it, 1000 without."""
_HISTORY_MAX: Final = 50  # commits that are looked through for an older version; one page of the hub
_HISTORY_AT_ONCE: Final = 8
_TAG = re.compile(r"lfs:([0-9a-f]{64})|git:([0-9a-f]{40}|[0-9a-f]{64})")


def huggingface_source(spec: SourceSpec, credentials: Credentials, **_: object) -> HuggingFaceSource:
    """Raises ConfigError."""
    address = hugging_face_address(spec)
    ambient = checked_endpoint(environment("HF_ENDPOINT") or ENDPOINT, "HUGGING_FACE")
    endpoint = checked_endpoint(address.endpoint, "HUGGING_FACE") if address.endpoint else ambient
    file = TokenFile(_token_path())

    def otherwise() -> str | None:
        # Whoever writes a manifest chooses the endpoint. The node's own token goes to the node's own hub alone.
        if endpoint != ambient:
            return None
        return environment("HF_TOKEN") or environment("HUGGING_FACE_HUB_TOKEN") or file.token()

    return HuggingFaceSource(address, endpoint, Token(credentials, otherwise, "HUGGING_FACE"))


def _token_path() -> str:
    """As huggingface_hub's ``constants.py`` finds it."""
    cache = environment("XDG_CACHE_HOME") or "~/.cache"
    home = environment("HF_HOME") or f"{cache}/huggingface"
    return os.path.expanduser(environment("HF_TOKEN_PATH") or f"{home}/token")


@dataclass(frozen=True, slots=True)
class _Pin:
    """What the revision is: its commit, the time of it, and whether entries are asked for with their own times."""

    commit: str
    mtime_ns: int
    expand: bool


class HuggingFaceSource:
    """One repository, or a directory of it, at one commit."""

    def __init__(self, address: HubAddress, endpoint: str, token: Token, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        kind = "" if address.kind == "models" else f"{address.kind}/"
        self._revision = address.revision or "main"
        self._token = token
        self._client = HubClient(endpoint, self._auth, timeouts)
        self._reader = HubReader(self._client, self._check_reading)
        self._shown = Shown(address.path, address.filters)
        self._repo = f"{kind}{address.repo}"
        self._api = f"{endpoint}/api/{address.kind}/{address.repo}"
        self._files = f"{endpoint}/{kind}{address.repo}/resolve"
        self._pin: _Pin | None = None
        self._pinning = asyncio.Lock()
        self._older: LRUCache[tuple[str, str], str] = LRUCache(65536)  # (path, tag) → commit that has it, or ""
        below = f"/{address.path}" if address.path else ""
        self.uri = f"hf://{self._repo}@{self._revision}{below}"
        self.identity = f"hf:{endpoint}:{self._repo}{below}"
        self._name = self.uri if endpoint == ENDPOINT else f"{self.uri} at {endpoint}"

    def go_on_at(self, revision: str) -> None:
        """See ``NamesRevisions``."""
        self._revision = revision

    @property
    def revision(self) -> str:
        """The commit."""
        return self._pin.commit if self._pin is not None else ""

    # -- Source ---------------------------------------------------------------------------------------------------

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        """See ``Source``."""
        entries = self._entries(directory, recursive=bool(self._shown.filters))
        async for page in directory_pages(entries, self._shown, directory, self._name):
            yield page

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        """See ``Source``. One flat listing."""
        async for page in tree_pages(self._entries("", recursive=True), self._shown):
            yield page

    async def stat(self, path: str) -> SourceObject | None:
        """See ``Source``."""
        if not path:
            return SourceObject("", Kind.DIRECTORY)
        if path_parts(path) is None or not _is_text(path):
            return None
        pin = await self._pinned()
        found = await self._path_info(pin.commit, path, pin)
        if found is None or not self._shown.filters:
            return found
        if found.kind is Kind.DIRECTORY:
            return found if await any_shown(self._entries(path, recursive=True), self._shown) else None
        return found if self._shown.allow(found) else None

    def digest_of(self, obj: SourceObject) -> Digest | None:
        """See ``DigestSource``."""
        match = _TAG.fullmatch(obj.version_tag)
        if match is None:
            return None
        return Digest("sha256", match[1]) if match[1] else git_blob(match[2])

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        """See ``Source``.

        A file of an older revision (an open file after a resync, ``dataset@revision``, a server that began anew) is
        looked for in the history: its tag says which content, not which commit.
        """
        key = (obj.path, obj.version_tag)
        commit = self._older.get(key) or (await self._pinned()).commit
        try:
            await self._read_at(commit, obj, wanted, sink)
            return
        except SourceChanged as error:
            older = self._older.get(key)
            if older is None:
                older = self._older[key] = await self._commit_with(obj, commit)
            if not older or older == commit:
                raise
            changed = error
        try:
            await self._read_at(older, obj, wanted, sink)
        except SourceChanged as error:
            raise error from changed

    async def close(self) -> None:
        """See ``Source``."""
        await self._client.close()

    # -- listing --------------------------------------------------------------------------------------------------

    async def _pinned(self) -> _Pin:
        async with self._pinning:
            if self._pin is None:
                self._pin = await self._resolve_revision()
        return self._pin

    async def _resolve_revision(self) -> _Pin:
        url = f"{self._api}/revision/{quote(self._revision, safe='')}"
        async with self._client.follow("GET", url, self._name) as answer:
            self._check(answer)
            info = await read_json(answer, self._name)
        commit = info.get("sha") if isinstance(info, dict) else None
        if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40,64}", commit):
            raise SourceUnavailable(f"{self._name}: the answer names no commit (check the endpoint)")
        files = info.get("siblings")
        expand = isinstance(files, list) and len(files) <= EXPANDED_FILES_MAX
        return _Pin(commit, _time_ns(info.get("lastModified")), expand)

    async def _entries(self, directory: str, *, recursive: bool) -> AsyncGenerator[list[SourceObject], None]:
        """What is in a directory of the dataset, or below it. Raises SourceMissing when it is none."""
        pin = await self._pinned()
        outer = self._shown.outer(directory)
        if not _is_text(outer):
            raise SourceMissing(f"{self._name}: there is no directory {directory!r}")
        path = f"/{quote(outer, safe='')}" if outer else ""
        query = f"recursive={_flag(recursive)}&expand={_flag(pin.expand)}"
        found = False
        async for page in self._client.pages(f"{self._api}/tree/{pin.commit}{path}?{query}", self._name, self._check):
            objects = [obj for entry in page if (obj := self._object(entry, pin)) is not None]
            found = found or bool(objects)
            yield objects
        if outer and not found:
            raise SourceMissing(f"{self._name}: {outer!r} is no directory of the repository")

    async def _path_info(self, commit: str, path: str, pin: _Pin) -> SourceObject | None:
        outer = self._shown.outer(path)
        form = [("paths", outer), ("expand", _flag(pin.expand))]
        async with self._client.follow("POST", f"{self._api}/paths-info/{commit}", self._name, form) as answer:
            self._check(answer)
            found = await read_json(answer, self._name)
        if not isinstance(found, list):
            raise SourceUnavailable(f"{self._name}: the answer about {path!r} is no list (check the endpoint)")
        objects = (self._object(entry, pin) for entry in found)
        return next((obj for obj in objects if obj is not None and obj.path == path), None)

    def _object(self, entry: Any, pin: _Pin) -> SourceObject | None:
        """None for what is neither file nor directory (a submodule), and for what is not below the root."""
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise SourceUnavailable(f"{self._name}: the listing holds something that is no entry")
        path = self._shown.inner(entry["path"])
        if path is None or entry.get("type") not in ("file", "directory"):
            return None
        if entry["type"] == "directory":
            return SourceObject(path, Kind.DIRECTORY)
        lfs = entry.get("lfs")
        large = isinstance(lfs, dict)
        size = lfs.get("size") if isinstance(lfs, dict) else entry.get("size")
        oid = str(lfs.get("oid") if isinstance(lfs, dict) else entry.get("oid")).removeprefix("sha256:")
        tag = f"lfs:{oid}" if large else f"git:{oid}"
        if not isinstance(size, int) or _TAG.fullmatch(tag) is None:
            raise SourceUnavailable(f"{self._name}: the listing does not say what version {path!r} is")
        last = entry.get("lastCommit")
        mtime_ns = _time_ns(last.get("date")) if isinstance(last, dict) else 0
        return SourceObject(path, Kind.FILE, size, mtime_ns or pin.mtime_ns, tag)

    # -- reading --------------------------------------------------------------------------------------------------

    async def _read_at(self, commit: str, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        outer = self._shown.outer(obj.path)
        what = f"{self._name}: {outer!r}"
        url = f"{self._files}/{commit}/{quote(os.fsencode(outer))}"
        await self._reader.read(url, obj, wanted, sink, _Version(commit, obj.version_tag, what), what)

    async def _commit_with(self, obj: SourceObject, tried: str) -> str:
        """The newest commit in the history of the revision that has this content at this path; "" without one."""
        url = f"{self._api}/commits/{quote(self._revision, safe='')}"
        try:
            async with self._client.follow("GET", url, self._name) as answer:
                self._check(answer)
                history = await read_json(answer, self._name)
        except (SourceMissing, SourceRefused):  # the branch went, or a mirror that has no histories
            return ""
        entries = history[:_HISTORY_MAX] if isinstance(history, list) else []
        commits = [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]
        commits = [commit for commit in commits if commit != tried and re.fullmatch(r"[0-9a-f]{40,64}", commit)]
        for start in range(0, len(commits), _HISTORY_AT_ONCE):
            some = commits[start : start + _HISTORY_AT_ONCE]
            try:
                async with asyncio.TaskGroup() as group:
                    asked = [group.create_task(self._has(commit, obj)) for commit in some]
            except ExceptionGroup as failures:
                # Callers know SourceError, and no groups of them.
                raise first_of(failures, SourceError) or failures.exceptions[0] from failures
            if found := [commit for commit, task in zip(some, asked, strict=True) if task.result()]:
                return found[0]
        return ""

    async def _has(self, commit: str, obj: SourceObject) -> bool:
        try:
            found = await self._path_info(commit, obj.path, _Pin(commit, 0, False))
        except SourceMissing:
            return False
        return found is not None and found.version_tag == obj.version_tag

    # -- what the hub says ----------------------------------------------------------------------------------------

    def _auth(self) -> Mapping[str, str]:
        token = self._token.get()
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _check(self, answer: aiohttp.ClientResponse) -> None:
        """The error behind an answer. Statuses alone say little: there is X-Error-Code (``hf_raise_for_status``)."""
        status, code = answer.status, answer.headers.get("X-Error-Code", "")
        if status in (200, 206, 416):
            return
        shown = f"{self._name}: HTTP {status}"
        if code == "GatedRepo":
            raise SourceRefused(
                f"{shown}, {self._repo} is gated: ask for access on its page, "
                "then put a token into the Secret or HF_TOKEN"
            )
        if status == 401:
            # Also what somebody without a token hears of a repository that is not there.
            raise SourceRefused(
                f"{shown}, {self._repo} is gated or private, or not there: put a token into the Secret or HF_TOKEN"
            )
        if status in (403, 407):
            raise SourceRefused(f"{shown}, the token may not read {self._repo} (or access to it is disabled)")
        if code == "RevisionNotFound":
            raise SourceMissing(f"{shown}, {self._repo} has no revision {self._revision!r}")
        if code == "EntryNotFound":
            raise SourceMissing(f"{shown}, there is no such file or directory")
        if status in (404, 410):
            raise SourceMissing(
                f"{shown}, there is no repository {self._repo} (check name and repoType; a private one needs a token)"
            )
        if status in (429, 503):
            raise RetryLater(f"{shown}, the hub asks for patience", patience_s(answer.headers))
        raise SourceUnavailable(shown)

    def _check_reading(self, answer: aiohttp.ClientResponse) -> None:
        """What was listed is asked for, so a file or commit that is gone means that it changed."""
        try:
            self._check(answer)
        except SourceMissing as error:
            if answer.headers.get("X-Error-Code") == "RepoNotFound":
                raise
            raise SourceChanged(f"{error} (it was listed)") from None


class _Version:
    """The proof of one version: the commit that was asked for, and the hash of the content as the hub's ETag."""

    def __init__(self, commit: str, tag: str, what: str) -> None:
        match = _TAG.fullmatch(tag)
        self._commit = commit
        self._lfs = match[1] if match else None
        self._expected = (match[1] or match[2]) if match else ""
        self._what = what
        self._same_commit = False
        self._same_content = False

    async def hub_says(self, answer: aiohttp.ClientResponse, final: bool) -> None:
        commit = answer.headers.get("X-Repo-Commit")
        if commit is not None:
            if commit != self._commit:
                raise SourceChanged(f"{self._what}: the hub gives commit {commit[:64]}, {self._commit} was asked for")
            self._same_commit = True
        etag = answer.headers.get("X-Linked-Etag") or (answer.headers.get("ETag") if final else None)
        if etag is not None:
            etag = etag.strip().removeprefix("W/").strip('"').removeprefix("sha256:")
            if etag != self._expected:
                raise SourceChanged(f"{self._what}: version {etag[:64]!r} is there, {self._expected} was listed")
            self._same_content = True

    def complete(self) -> bool:
        return self._same_commit and self._same_content

    def holds(self, data: bytes) -> bool:
        if self._lfs is not None:
            return hashlib.sha256(data).hexdigest() == self._lfs
        algorithm = hashlib.sha1 if len(self._expected) == 40 else hashlib.sha256
        return algorithm(b"blob %d\0" % len(data) + data).hexdigest() == self._expected


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _is_text(path: str) -> bool:
    """Whether it can be sent: names of the hub are UTF-8, so one with other bytes is certainly not there."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _time_ns(text: object) -> int:
    """Unix nanoseconds of an ISO 8601 time, in whole seconds; 0 without one."""
    try:
        return int(datetime.fromisoformat(text).timestamp()) * 10**9 if isinstance(text, str) else 0
    except (ValueError, OverflowError):
        return 0
