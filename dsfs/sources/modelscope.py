"""``modelscope://NAMESPACE/NAME[/dir]``: a model or dataset of ModelScope, through the API that its own library uses.

What pins: each entry of a listing carries ``Sha256`` and ``Revision``, the commit that changed this file last. The
version tag is both, ``sha256:HEX@COMMIT``, and a read asks for the file at that commit: whatever the branch does, it
means these bytes, and the next revision shares what it did not change. Where an entry has no commit (the tag is
``sha256:HEX``, or ``size:N`` without a hash), or the hub does not know that commit any more, the bytes are held until
the branch, listed once more, still has that tag.

Facts that are in no documentation, from what others measured: an unknown revision is answered with 200 and
``Files: null``; a file that is not there with 200 and an error document; small files come under 200 with a right
Content-Range; large ones by a redirect to a content host, whose URL holds ``auth_key=UNIX-…``.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote_plus

import aiohttp

from dsfs.errors import RetryLater, SourceChanged, SourceMissing, SourceRefused, SourceUnavailable
from dsfs.manifest.schema import SourceSpec
from dsfs.model import Kind, ListingPage, SourceObject, path_parts
from dsfs.ranges import ByteRange, MiB
from dsfs.sources.base import Sink
from dsfs.sources.digest import Digest
from dsfs.sources.hub import Credentials, HubClient, Token, checked_endpoint, environment, is_commit, read_json
from dsfs.sources.hub_address import HubAddress, model_scope_address
from dsfs.sources.hub_listing import Shown, any_shown, directory_pages, tree_pages
from dsfs.sources.hub_read import Held, HubReader, patience_s
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS, Timeouts

ENDPOINT: Final = "https://modelscope.cn"
PAGE_FILES: Final = 200  # of a dataset; what the library asks for. Models come in one answer
_SLICE_FILES: Final = 1000
_HELD_BYTES: Final = 8 * MiB
_TAG = re.compile(r"(?:sha256:([0-9a-f]{64})|size:\d+)(?:@([0-9a-f]{40,64}))?")


def modelscope_source(spec: SourceSpec, credentials: Credentials, **_: object) -> ModelScopeSource:
    """Raises ConfigError."""
    address = model_scope_address(spec)
    ambient = checked_endpoint(_environment_endpoint(), "MODEL_SCOPE")
    endpoint = checked_endpoint(address.endpoint, "MODEL_SCOPE") if address.endpoint else ambient

    def otherwise() -> str | None:
        # The node's own token goes to the node's own hub alone. The library's file of cookies is a pickle: not read.
        return environment("MODELSCOPE_API_TOKEN") if endpoint == ambient else None

    return ModelScopeSource(address, endpoint, Token(credentials, otherwise, "MODEL_SCOPE"))


def _environment_endpoint() -> str:
    """As the library's ``config.py``: MODELSCOPE_ENDPOINT, else the older MODELSCOPE_DOMAIN, with or without scheme."""
    found = environment("MODELSCOPE_ENDPOINT") or environment("MODELSCOPE_DOMAIN") or ENDPOINT
    return found if found.startswith(("http://", "https://")) else f"https://{found}"


@dataclass(frozen=True, slots=True)
class _Pin:
    """``at`` is the Revision that requests carry, ``commit`` the head of it where the hub told ("" if not)."""

    at: str
    commit: str


class ModelScopeSource:
    """One repository, or a directory of it."""

    def __init__(self, address: HubAddress, endpoint: str, token: Token, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        self._revision = address.revision or "master"
        self._token = token
        self._client = HubClient(endpoint, self._auth, timeouts)
        self._reader = HubReader(self._client, self._check)
        self._shown = Shown(address.path, address.filters)
        self._dataset = address.kind == "datasets"
        self._repo = f"{address.kind}/{address.repo}"
        self._api = f"{endpoint}/api/v1/{self._repo}"
        self._pin: _Pin | None = None
        self._pinning = asyncio.Lock()
        below = f"/{address.path}" if address.path else ""
        self.uri = f"modelscope://{self._repo}@{self._revision}{below}"
        self.identity = f"modelscope:{endpoint}:{self._repo}{below}"
        self._name = self.uri if endpoint == ENDPOINT else f"{self.uri} at {endpoint}"

    def go_on_at(self, revision: str) -> None:
        """See ``NamesRevisions``."""
        self._revision = revision

    @property
    def revision(self) -> str:
        """The commit, where the hub tells it."""
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
        """See ``Source``. The API has no question for one name, so this lists its directory."""
        if not path:
            return SourceObject("", Kind.DIRECTORY)
        if path_parts(path) is None:
            return None
        found = await self._find(path, (await self._pinned()).at)
        if found is None or not self._shown.filters:
            return found
        if found.kind is Kind.DIRECTORY:
            return found if await any_shown(self._entries(path, recursive=True), self._shown) else None
        return found if self._shown.allow(found) else None

    def digest_of(self, obj: SourceObject) -> Digest | None:
        """See ``DigestSource``."""
        match = _TAG.fullmatch(obj.version_tag)
        return Digest("sha256", match[1]) if match and match[1] else None

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        """See ``Source``."""
        match = _TAG.fullmatch(obj.version_tag)
        what = f"{self._name}: {self._shown.outer(obj.path)!r}"
        if match is None:
            raise SourceChanged(f"{what}: listed as a version that this hub has none of")
        if match[2]:
            try:
                await self._read_at(match[2], obj, wanted, sink, what)
                return
            except (SourceChanged, SourceMissing):
                pass  # nothing was written; the branch may still have this version, if not this history
        await self._read_checked(obj, wanted, sink, what)

    async def _read_checked(self, obj: SourceObject, wanted: ByteRange, sink: Sink, what: str) -> None:
        for start in range(wanted.start, wanted.stop, _HELD_BYTES):
            piece = ByteRange(start, min(start + _HELD_BYTES, wanted.stop))
            held = Held()
            try:
                await self._read_at(self._revision, obj, piece, held, what)
                now = await self._find(obj.path, self._revision)  # after the bytes: a change while they came counts
            except SourceMissing as error:
                raise SourceChanged(f"{what} was listed, and is gone") from error
            if now is None or now.version_tag != obj.version_tag:
                raise SourceChanged(f"{what} is not the version that was listed any more")
            await sink.write(start, held.data())

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
        """The head of the branch. ``LatestCommitter`` has its id, or only the first eight digits of it (``ShortId``).

        Then the rest is learnt from the root, where the newest commit has changed something, be it far below.
        """
        data = await self._data(self._listing_url(self._revision, "", recursive=False, page=1))
        files = data.get("Files")
        if not isinstance(files, list) or not files:
            await self._check_revision()
        if is_commit(self._revision):
            return _Pin(self._revision, self._revision)
        latest = data.get("LatestCommitter")
        told = [str(latest.get(key) or "").lower() for key in ("Id", "ShortId")] if isinstance(latest, dict) else []
        if told and is_commit(told[0]):
            return _Pin(told[0], told[0])
        short = told[1] if told and re.fullmatch(r"[0-9a-f]{7,40}", told[1]) else None
        heads = {_commit_of(entry) for entry in files or () if isinstance(entry, dict)}
        matching = [commit for commit in heads if short is not None and commit.startswith(short)]
        return _Pin(matching[0], matching[0]) if len(matching) == 1 else _Pin(self._revision, "")

    async def _check_revision(self) -> None:
        """Raises SourceMissing when the repository has no such revision, which a listing does not say."""
        data = await self._data(f"{self._api}/revisions")
        known = data.get("RevisionMap")
        names = [
            str(entry.get("Revision"))
            for kind in ("Branches", "Tags")
            for entry in ((known.get(kind) if isinstance(known, dict) else None) or ())
            if isinstance(entry, dict)
        ]
        if self._revision not in names:
            has = f"it has {', '.join(names[:10])}" if names else "it has none"
            raise SourceMissing(f"{self._name}: {self._repo} has no revision {self._revision!r} ({has})")

    async def _entries(self, directory: str, *, recursive: bool) -> AsyncGenerator[list[SourceObject], None]:
        """What is in a directory of the dataset, or below it. Raises SourceMissing when it is none."""
        pin = await self._pinned()
        async with aclosing(self._entries_at(pin.at, directory, recursive=recursive)) as pages:
            async for page in pages:
                yield page

    async def _entries_at(
        self, revision: str, directory: str, *, recursive: bool
    ) -> AsyncGenerator[list[SourceObject], None]:
        outer = self._shown.outer(directory)
        found, number, seen = False, 0, set[str]()
        while True:
            number += 1
            data = await self._data(self._listing_url(revision, outer, recursive=recursive, page=number))
            files = data.get("Files") or []
            if not isinstance(files, list):
                raise SourceUnavailable(f"{self._name}: the answer is no listing (check the endpoint)")
            # A model of any size is one answer: in slices, for the loop has others to serve.
            for start in range(0, len(files), _SLICE_FILES):
                some = files[start : start + _SLICE_FILES]
                objects = [obj for entry in some if (obj := self._object(entry)) is not None]
                if self._dataset:
                    # Numbered pages: of a branch that moved meanwhile, one file comes twice and another not at all.
                    if not seen.isdisjoint(obj.path for obj in objects):
                        raise SourceUnavailable(f"{self._name}: the listing changed while it was read")
                    seen.update(obj.path for obj in objects)
                found = found or bool(objects)
                yield objects
            if not self._dataset or len(files) < PAGE_FILES:
                break
        if outer and not found:
            raise SourceMissing(f"{self._name}: {outer!r} is no directory of the repository")

    def _listing_url(self, revision: str, outer: str, *, recursive: bool, page: int) -> str:
        asked = {"Revision": revision, "Recursive": str(recursive)}
        if outer:
            asked["Root"] = outer
        if self._dataset:
            asked |= {"PageNumber": str(page), "PageSize": str(PAGE_FILES)}
        return f"{self._api}/repo/{'tree' if self._dataset else 'files'}?{_query(asked)}"

    async def _find(self, path: str, revision: str) -> SourceObject | None:
        directory = path.rpartition("/")[0]
        try:
            async with aclosing(self._entries_at(revision, directory, recursive=False)) as pages:
                async for page in pages:
                    for obj in page:
                        if obj.path == path:
                            return obj
        except SourceMissing:
            # The directory above is not there, or nothing is: a repository that went is no answer about a file.
            if not is_commit(revision):
                await self._check_revision()
        return None

    def _object(self, entry: Any) -> SourceObject | None:
        """None for a submodule, and for what is not below the root."""
        if not isinstance(entry, dict) or not isinstance(entry.get("Path"), str):
            raise SourceUnavailable(f"{self._name}: the listing holds something that is no entry")
        path = self._shown.inner(entry["Path"].strip("/"))
        if not path or entry.get("Type") == "commit":
            return None
        if entry.get("Type") == "tree":
            return SourceObject(path, Kind.DIRECTORY)
        size = entry.get("Size")
        if not isinstance(size, int):
            raise SourceUnavailable(f"{self._name}: the listing does not say how large {path!r} is")
        digest = str(entry.get("Sha256") or "").lower()
        commit = _commit_of(entry)
        tag = f"sha256:{digest}" if re.fullmatch(r"[0-9a-f]{64}", digest) else f"size:{size}"
        return SourceObject(path, Kind.FILE, size, _time_ns(entry.get("CommittedDate")), f"{tag}@{commit}".rstrip("@"))

    # -- requests -------------------------------------------------------------------------------------------------

    async def _data(self, url: str) -> dict[str, Any]:
        """``Data`` of an answer of the API: ``{"Code": 200, "Success": true, "Message": …, "Data": …}``."""
        async with self._client.follow("GET", url, self._name) as answer:
            self._check(answer)
            document = await read_json(answer, self._name)
        if not isinstance(document, dict) or "Code" not in document:
            raise SourceUnavailable(f"{self._name}: the answer is none of ModelScope's API (check the endpoint)")
        if document["Code"] != 200 or document.get("Success") is False:
            self._raise_code(document)
        data = document.get("Data")
        return data if isinstance(data, dict) else {"Files": data}

    async def _read_at(self, revision: str, obj: SourceObject, wanted: ByteRange, sink: Sink, what: str) -> None:
        asked = {"Revision": revision, "FilePath": self._shown.outer(obj.path)}
        url = f"{self._api}/repo?{_query(asked)}"
        await self._reader.read(url, obj, wanted, sink, _Version(obj, what), what)

    def _auth(self) -> Mapping[str, str]:
        """Both, as the library sends them: older paths of the API know the cookie alone."""
        token = self._token.get()
        return {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}

    def _check(self, answer: aiohttp.ClientResponse) -> None:
        """The error behind a status."""
        status = answer.status
        if status in (200, 206, 416):
            return
        shown = f"{self._name}: HTTP {status}"
        if status in (401, 403, 407):
            raise SourceRefused(
                f"{shown}, {self._repo} is private or gated: put a token into the Secret or MODELSCOPE_API_TOKEN"
            )
        if status in (404, 410):
            raise SourceMissing(
                f"{shown}, there is no {self._repo} (check name and repoType; a private one needs a token)"
            )
        if status in (429, 503):
            raise RetryLater(f"{shown}, the hub asks for patience", patience_s(answer.headers))
        raise SourceUnavailable(shown)

    def _raise_code(self, document: Mapping[str, Any]) -> None:
        code = document.get("Code")
        if code == 10010205001:  # "record not found", which comes with 404 mostly
            raise SourceMissing(f"{self._name}: there is no {self._repo} (check name and repoType)")
        if code in (401, 403, 10010203002):
            raise SourceRefused(f"{self._name}: code {code}, put a token into the Secret or MODELSCOPE_API_TOKEN")
        raise SourceUnavailable(f"{self._name}: the hub answered with code {str(code)[:20]}")


class _Version:
    """A commit names its content, so asking for it is the proof; small files are checked against their hash as well."""

    def __init__(self, obj: SourceObject, what: str) -> None:
        match = _TAG.fullmatch(obj.version_tag)
        self._sha256 = match[1] if match else None
        self._size = obj.size or 0
        self._what = what

    async def hub_says(self, answer: aiohttp.ClientResponse, final: bool) -> None:
        """A file that is not there is answered with 200 and a document that says so; real files have Content-Range."""
        document = answer.status == 200 and answer.content_type == "application/json"
        if final and document and "Content-Range" not in answer.headers and answer.content_length != self._size:
            raise SourceChanged(f"{self._what}: the hub has no such file at this commit (it sent a document instead)")

    def complete(self) -> bool:
        return True

    def holds(self, data: bytes) -> bool:
        return self._sha256 is None or hashlib.sha256(data).hexdigest() == self._sha256


def _query(parameters: Mapping[str, str]) -> str:
    """Quoted as the library does (``quote_plus``); bytes that are not UTF-8 as they are."""
    return "&".join(f"{key}={quote_plus(value, errors='surrogateescape')}" for key, value in parameters.items())


def _commit_of(entry: Mapping[str, Any]) -> str:
    """The commit that changed an entry last; "" where the listing has none."""
    for key in ("Revision", "CommitId"):
        commit = str(entry.get(key) or "").lower()
        if is_commit(commit):
            return commit
    return ""


def _time_ns(value: object) -> int:
    """Unix nanoseconds of a time in Unix seconds; 0 without one."""
    return value * 10**9 if isinstance(value, int) and 0 < value < 2**33 else 0
