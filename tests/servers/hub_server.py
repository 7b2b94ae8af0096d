"""A hub of models and datasets that speaks both APIs, Hugging Face's and ModelScope's, beside a content host.

Commits are made with ``commit``; all else is what the hubs' own libraries ask for (huggingface_hub, modelscope_hub) and
what others measured of the real ones: the hub says 401 of a repository that it does not have, plain files of public
repositories are a relative redirect to a cache, ModelScope answers 200 to a revision that it has not. The content host
refuses requests that carry a token, and links that expired.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from aiohttp import web

from tests.servers.process import HOST

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_START_S = 1_700_000_000


@dataclass(frozen=True)
class File:
    """One file of a commit. ``commit`` and ``time_s`` are those of its last change."""

    data: bytes
    lfs: bool
    commit: str
    time_s: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """The git blob: of an LFS file that of its pointer."""
        data = self.data
        if self.lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n"
            data = pointer.encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass
class Repo:
    """``readers``: tokens that may read it; None for a public one. ``gated``: it says that it is there."""

    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    times_s: dict[str, int] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    readers: set[str] | None = None
    gated: bool = False

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


@dataclass(frozen=True)
class Asked:
    host: str  # hub or cdn
    method: str
    target: str
    headers: Mapping[str, str]


Answer = Callable[[web.Request, web.Response], web.StreamResponse]


@dataclass
class Hub:
    """The handle; it may be changed while the server runs."""

    url: str = ""
    cdn_url: str = ""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    asked: list[Asked] = field(default_factory=list)
    page_files: int = 1000
    page_expanded: int = 50
    link_life_s: int = 3600
    link_host: str | None = None  # what Link headers name instead of this hub, as behind a mirror
    tells_commit: bool = True  # ModelScope: whether LatestCommitter and the entries say a commit
    reads_commits: bool = True  # ModelScope: whether a file is given at a commit
    on_hub: deque[Answer] = field(default_factory=deque)
    """Each changes the answer to one resolve or download of the hub."""
    on_cdn: deque[Answer] = field(default_factory=deque)
    on_api: deque[Answer] = field(default_factory=deque)
    kill: Callable[[], None] = lambda: None
    _count: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _good_links: set[str] = field(default_factory=set)

    # -- what tests do --------------------------------------------------------------------------------------------

    def repo(self, kind: str, name: str) -> Repo:
        return self.repos.setdefault((kind, name), Repo())

    def commit(
        self, kind: str, name: str, changes: Mapping[str, bytes | None], branch: str = "main", lfs: str = r".*\.bin"
    ) -> str:
        """A commit on a branch; None deletes. Paths that match ``lfs`` are kept as large files."""
        repo, number = self.repo(kind, name), next(self._count)
        commit, time_s = hashlib.sha1(f"commit {number}".encode()).hexdigest(), _START_S + 3600 * number
        files = dict(repo.commits.get(repo.refs.get(branch, ""), {}))
        for path, data in changes.items():
            if data is None:
                files.pop(path, None)
            else:
                files[path] = File(data, re.fullmatch(lfs, path, re.DOTALL) is not None, commit, time_s)
        repo.commits[commit], repo.times_s[commit], repo.refs[branch] = files, time_s, commit
        return commit

    def revoke_links(self) -> None:
        """No signed URL that was given so far works any more."""
        self._good_links.clear()

    def count(self, host: str, part: str = "") -> int:
        return sum(1 for asked in self.asked if asked.host == host and part in asked.target)

    # -- serving --------------------------------------------------------------------------------------------------

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(Asked("hub", request.method, request.raw_path, dict(request.headers)))
        path, _, query = request.raw_path.partition("?")
        parts = [unquote(part) for part in path.strip("/").split("/")]
        form = [(key, str(value)) for key, value in (await request.post()).items()]
        if parts[:2] == ["api", "v1"]:
            answer, behaviours = self._modelscope(request, parts[2:], dict(parse_qsl(query)))
        else:
            answer, behaviours = self._hugging_face(request, parts, dict(parse_qsl(query)), form)
        return behaviours.popleft()(request, answer) if behaviours else answer

    async def serve_content(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(Asked("cdn", request.method, request.raw_path, dict(request.headers)))
        if "Authorization" in request.headers or "Cookie" in request.headers:
            return web.Response(status=400, text="only one auth mechanism allowed")
        expires = request.query.get("Expires") or request.query.get("auth_key", "0").partition("-")[0]
        if request.raw_path not in self._good_links or int(expires) < time.time():
            return web.Response(status=403, text="AccessDenied: the link expired")
        sha256 = request.path.rpartition("/")[2]
        data = next(
            file.data
            for repo in self.repos.values()
            for files in repo.commits.values()
            for file in files.values()
            if file.sha256 == sha256
        )
        answer = _ranged(request, data, {"ETag": f'"{hashlib.md5(data).hexdigest()}"'})
        return self.on_cdn.popleft()(request, answer) if self.on_cdn else answer

    def _link(self, file: File, query: str) -> str:
        path = f"/lfs/{file.sha256}?{query}&n={next(self._count)}"
        self._good_links.add(path)
        return f"{self.cdn_url}{path}"

    # -- Hugging Face ---------------------------------------------------------------------------------------------

    def _hugging_face(
        self, request: web.Request, parts: list[str], query: dict[str, str], form: list[tuple[str, str]]
    ) -> tuple[web.Response, deque[Answer]]:
        if parts[:2] == ["api", "resolve-cache"]:
            kind, name, at, path = parts[2], "/".join(parts[3:5]), parts[5], "/".join(parts[6:])
            file = self.repos[kind, name].commits[at][path]
            return _ranged(request, file.data, {"X-Repo-Commit": at, "ETag": f'"{file.etag}"'}), self.on_hub
        if parts[0] == "api":
            kind, name, rest = parts[1], "/".join(parts[2:4]), parts[4:]
        else:
            kind = parts[0] if parts[0] in ("datasets", "spaces") else "models"
            names = parts if kind == "models" else parts[1:]
            name, rest = "/".join(names[:2]), names[2:]
        repo = self.repos.get((kind, name))
        behaviours = self.on_hub if rest[:1] == ["resolve"] else self.on_api
        if refusal := self._refusal(request, repo):
            return refusal, behaviours
        assert repo is not None
        what, revision, path = rest[0], rest[1], "/".join(rest[2:])
        if (commit := repo.resolve(revision)) is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}"), behaviours
        if what == "revision":
            date, siblings = _iso(repo.times_s[commit]), [{"rfilename": path} for path in repo.commits[commit]]
            return _json({"id": name, "sha": commit, "lastModified": date, "siblings": siblings}), behaviours
        if what == "commits":
            newest = sorted(repo.times_s, key=lambda id_: -repo.times_s[id_])
            return _json([{"id": id_, "title": "x", "date": _iso(repo.times_s[id_])} for id_ in newest]), behaviours
        entries = _entries(repo.commits[commit])
        if what == "tree":
            return self._tree(request, entries, path, query), behaviours
        if what == "paths-info":
            wanted, expand = [value for key, value in form if key == "paths"], ("expand", "true") in form
            return _json([_shown(entries[p], p, expand) for p in wanted if p in entries]), behaviours
        assert what == "resolve"
        return self._resolve(request, kind, name, commit, path), behaviours

    def _refusal(self, request: web.Request, repo: Repo | None) -> web.Response | None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if token is not None and token not in self.tokens:
            return _error(401, None, "Invalid credentials in Authorization header")
        if repo is None:
            return _error(401 if token is None else 404, "RepoNotFound", "Repository not found")
        if repo.readers is None or token in repo.readers:
            return None
        if repo.gated:
            return _error(401 if token is None else 403, "GatedRepo", "Access is restricted")
        return _error(401 if token is None else 404, "RepoNotFound", "Repository not found")

    def _tree(
        self, request: web.Request, entries: Mapping[str, File | None], path: str, query: dict[str, str]
    ) -> web.Response:
        below = f"{path}/" if path else ""
        expand = query.get("expand") == "true"
        found = [
            p for p in entries if p.startswith(below) and (query["recursive"] == "true" or "/" not in p[len(below) :])
        ]
        if path and (path not in entries or entries[path] is not None):
            return _error(404, "EntryNotFound", f"{path} does not exist")
        start = int(query.get("cursor", "0"))
        stop = start + (self.page_expanded if expand else self.page_files)
        answer = _json([_shown(entries[p], p, expand) for p in found[start:stop]])
        if stop < len(found):
            base = (self.link_host or self.url) + request.raw_path.partition("?")[0]
            kept = f"recursive={query['recursive']}&expand={query['expand']}"
            answer.headers["Link"] = f'<{base}?{kept}&limit=1000&cursor={stop}>; rel="next"'
        return answer

    def _resolve(self, request: web.Request, kind: str, name: str, commit: str, path: str) -> web.Response:
        repo = self.repos[kind, name]
        file = repo.commits[commit].get(path)
        headers = {"X-Repo-Commit": commit}
        if file is None:
            answer = _error(404, "EntryNotFound", "Entry not found")
            answer.headers.update(headers)
            return answer
        if file.lfs:
            headers |= {
                "X-Linked-Size": str(len(file.data)),
                "X-Linked-Etag": f'"{file.sha256}"',
                "ETag": '"of-the-302"',
            }
            link = self._link(file, f"Expires={int(time.time()) + self.link_life_s}&Signature=s")
            return web.Response(status=302, headers={**headers, "Location": link})
        if repo.readers is None:
            cached = f"/api/resolve-cache/{kind}/{name}/{commit}/{quote(path)}?etag=%22{file.oid}%22"
            return web.Response(status=307, headers={**headers, "Location": cached})
        return _ranged(request, file.data, {**headers, "ETag": f'W/"{file.oid}"'})

    # -- ModelScope -----------------------------------------------------------------------------------------------

    def _modelscope(
        self, request: web.Request, parts: list[str], query: dict[str, str]
    ) -> tuple[web.Response, deque[Answer]]:
        repo = self.repos.get((parts[0], "/".join(parts[1:3])))
        what = "/".join(parts[3:])
        behaviours = self.on_hub if what == "repo" else self.on_api
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and request.cookies.get("m_session_id") != token:
            return _envelope(None, 400), behaviours
        if repo is None:
            return _envelope(None, 10010205001, 404), behaviours
        if repo.readers is not None and token not in repo.readers:
            return _envelope(None, 10010203002, 403), behaviours
        if what == "revisions":
            branches = [{"Revision": name, "CreatedAt": 0} for name in repo.refs]
            return _envelope({"RevisionMap": {"Branches": branches, "Tags": []}}), behaviours
        commit = repo.resolve(query.get("Revision", "master"))
        if what == "repo":
            at_commit = query["Revision"] in repo.commits
            file = repo.commits[commit].get(query["FilePath"]) if commit else None
            if file is None or (at_commit and not self.reads_commits):
                return _envelope(None, 10990101007), behaviours
            if not file.lfs:
                answer = _ranged(request, file.data, {})
                answer.set_status(200)  # as measured: the right part under the wrong status
                return answer, behaviours
            link = self._link(file, f"auth_key={int(time.time()) + self.link_life_s}-0-0-sum")
            return web.Response(status=302, headers={"Location": link}), behaviours
        assert what == ("repo/tree" if parts[0] == "datasets" else "repo/files"), what
        return self._ms_listing(repo, commit, query, paged=parts[0] == "datasets"), behaviours

    def _ms_listing(self, repo: Repo, commit: str | None, query: dict[str, str], *, paged: bool) -> web.Response:
        if commit is None:
            return _envelope({"Files": None, "IsVisual": 0, "LatestCommitter": None})
        entries = _entries(repo.commits[commit])
        root = query.get("Root", "").strip("/")
        below, recursive = f"{root}/" if root else "", query["Recursive"] == "True"
        found = [p for p in entries if p.startswith(below) and (recursive or "/" not in p[len(below) :])]
        if paged:
            size = int(query["PageSize"])
            start = (int(query["PageNumber"]) - 1) * size
            found = found[start : start + size]
        files = []
        for path in found:
            file, name = entries[path], path.rpartition("/")[2]
            last = max(
                (f for p, f in repo.commits[commit].items() if p == path or p.startswith(f"{path}/")),
                key=lambda f: f.time_s,
            )
            shown: dict[str, Any] = {"Name": name, "Path": path, "Type": "blob" if file else "tree", "Size": 0}
            shown |= {"CommittedDate": last.time_s, "Revision": last.commit if self.tells_commit else ""}
            if file:
                shown |= {"Size": len(file.data), "Sha256": file.sha256, "IsLFS": file.lfs}
            files.append(shown)
        latest = {"Id": "", "ShortId": commit[:8]} if self.tells_commit else None
        return _envelope({"Files": files or None, "IsVisual": 0, "LatestCommitter": latest})


def _entries(files: Mapping[str, File]) -> dict[str, File | None]:
    """Files and, as None, the directories above them; in the order of neither hub's promise."""
    found: dict[str, File | None] = {}
    for path in files:
        parts = path.split("/")
        found.update({"/".join(parts[:depth]): None for depth in range(1, len(parts))})
    return {**dict(reversed(list(files.items()))), **found}


def _shown(file: File | None, path: str, expand: bool) -> dict[str, Any]:
    if file is None:
        return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}
    entry: dict[str, Any] = {"type": "file", "oid": file.oid, "size": len(file.data), "path": path}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.data), "pointerSize": 134}
        entry["xetHash"] = hashlib.sha256(file.sha256.encode()).hexdigest()
    if expand:
        entry["lastCommit"] = {"id": file.commit, "title": "x", "date": _iso(file.time_s)}
        entry["securityFileStatus"] = {"status": "safe"}
    return entry


def _ranged(request: web.Request, data: bytes, headers: Mapping[str, str]) -> web.Response:
    match = _RANGE.fullmatch(request.headers.get("Range", ""))
    headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    if match is None:
        return web.Response(body=data, headers=headers)
    first, last = int(match[1]), int(match[2] or len(data) - 1)
    if first >= len(data):
        return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
    body = data[first : last + 1]
    where = f"bytes {first}-{first + len(body) - 1}/{len(data)}"
    return web.Response(status=206, body=body, headers={**headers, "Content-Range": where})


def _iso(time_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(time_s))


def _json(document: Any, status: int = 200) -> web.Response:
    answer = web.Response(status=status, body=json.dumps(document).encode(), content_type="application/json")
    answer.enable_compression()
    return answer


def _error(status: int, code: str | None, message: str) -> web.Response:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return web.Response(status=status, headers=headers, text=json.dumps({"error": message}))


def _envelope(data: Any, code: int = 200, status: int = 200) -> web.Response:
    return _json({"Code": code, "Data": data, "Message": "", "RequestId": "r", "Success": code == 200}, status)


# -- behaviours -------------------------------------------------------------------------------------------------------


def status(code: int, **headers: str) -> Answer:
    """Only this status, with headers (underscores stand for dashes)."""
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda _request, _answer: web.Response(status=code, headers=named)


def with_header(name: str, value: str | None) -> Answer:
    """The good answer, but for one header."""

    def change(_request: web.Request, answer: web.Response) -> web.Response:
        answer.headers.popall(name, None)
        if value is not None:
            answer.headers[name] = value
        return answer

    return change


def in_part(_request: web.Request, answer: web.Response) -> web.Response:
    """What is said to be a part of the answer, whoever asked for one."""
    answer.set_status(206)
    return answer


def shorter(_request: web.Request, answer: web.Response) -> web.Response:
    """Fewer bytes than the Content-Range says."""
    assert isinstance(answer.body, bytes)
    answer.body = answer.body[:-3]
    return answer


def spoilt(_request: web.Request, answer: web.Response) -> web.Response:
    """Other bytes, as many."""
    assert isinstance(answer.body, bytes)
    answer.body = bytes(byte ^ 1 for byte in answer.body)
    return answer


# -- running ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hub() -> Iterator[Hub]:
    """Both hosts on free ports, in a thread that is gone behind the block."""
    handle, loop, ready = Hub(), asyncio.new_event_loop(), threading.Event()
    stopping = asyncio.Event()

    async def run() -> None:
        runners, urls = [], []
        for serve in (handle.serve, handle.serve_content):
            app = web.Application()
            app.router.add_route("*", r"/{all:[\s\S]*}", serve)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, HOST, 0)
            await site.start()
            runners.append(runner)
            urls.append(f"http://{HOST}:{runner.addresses[0][1]}")
        handle.url, handle.cdn_url = urls
        ready.set()
        await stopping.wait()
        for runner in runners:
            await runner.cleanup()

    def main() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(run())
        loop.close()

    thread = threading.Thread(target=main, name="hub-server")

    def kill() -> None:
        if not loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it closed between these two lines
                loop.call_soon_threadsafe(stopping.set)
        thread.join(10)

    handle.kill = kill
    thread.start()
    try:
        assert ready.wait(10)
        yield handle
    finally:
        kill()
