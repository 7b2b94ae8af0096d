"""``s3://bucket/prefix``: listings and single names. ``s3_client`` has the way there, ``s3_read`` the bytes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError
from botocore.handlers import VALID_BUCKET, VALID_S3_ARN
from botocore.parsers import ResponseParserError
from botocore.utils import is_valid_uri
from pydantic import ValidationError

from dsfs.errors import ConfigError, SourceError, SourceMissing, SourceUnavailable, one_line
from dsfs.manifest.schema import SourceSpec
from dsfs.model import Kind, ListingPage, SourceObject
from dsfs.ranges import ByteRange
from dsfs.sources.base import Sink
from dsfs.sources.digest import Digest
from dsfs.sources.flat_tree import FlatTree
from dsfs.sources.key_ranges import KeyPage, KeyRanges
from dsfs.sources.options import UnknownOption
from dsfs.sources.prefix_or_key import Root, prefix_or_key
from dsfs.sources.s3_client import Opened, S3Connection, S3Options, translated
from dsfs.sources.s3_read import S3Reader, etag_in, tag_of, version_in
from dsfs.sources.s3_versions import pages_at
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS, Timeouts
from dsfs.sources.told_digests import EtagDigests, ToldDigests
from dsfs.sources.told_headers import of_amz_headers
from dsfs.sources.wire_request import WireRequest

_FAILURES: Final = (BotoCoreError, ClientError, ResponseParserError, aiohttp.ClientError, TimeoutError, OSError)
NO_OPTIONS: Final = S3Options()
_HOST_ALONE: Final = re.compile(r"(\[[^]/@]+\]|[^][:/@?#]+)(:\d+)?/?")
_ACCEPTED_OPTIONS: Final = "endpoint, region, anonymous, revision, requesterPays, provider, syncMode"


def s3_source(spec: SourceSpec, credentials: Mapping[str, str], **_: object) -> S3Source:
    """Raises ConfigError."""
    bucket, _slash, prefix = spec.uri.removeprefix("s3://").partition("/")
    if not spec.uri.startswith("s3://") or not bucket:
        raise ConfigError(f"S3: {spec.uri} names no bucket (write s3://bucket/prefix)")
    if not VALID_BUCKET.fullmatch(bucket) and not VALID_S3_ARN.fullmatch(bucket):
        raise ConfigError(
            f'S3: "{one_line(bucket, 80)}" is no bucket name '
            '(letters, digits, ".", "-" and "_"; of an access point the ARN, with ":" before its name)'
        )
    options = _options(spec.options)
    given = {key: credentials[key] for key in ("access-key", "secret-key") if credentials.get(key)}
    if len(given) == 1:
        missing = ({"access-key", "secret-key"} - given.keys()).pop()
        raise ConfigError(f"S3: the Secret of {spec.uri} has no {missing} (give access-key and secret-key, or neither)")
    if credentials.get("session-token") and not given:
        raise ConfigError(f"S3: the Secret of {spec.uri} has a session-token without access-key and secret-key")
    more = {key: credentials[key] for key in ("session-token", "sse-customer-key") if credentials.get(key)}
    return S3Source(bucket, prefix, options, {**given, **more})


def _options(given: Mapping[str, str]) -> S3Options:
    try:
        # An empty value is what a template leaves behind for "not set".
        options = S3Options.model_validate({key: value for key, value in given.items() if value})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UnknownOption("S3", key, _ACCEPTED_OPTIONS) from None
        raise ConfigError(f"S3: option {key}: {first['msg']}") from None
    if options.endpoint is not None:
        return options.model_copy(update={"endpoint": _endpoint(options.endpoint)})
    return options


def _endpoint(text: str) -> str:
    """The whole URL: a host alone, as rclone takes it, is asked over TLS. Raises ConfigError for what names no host."""
    whole = f"https://{text}" if _HOST_ALONE.fullmatch(text) else text
    try:
        url = urlsplit(whole)
        usable = url.scheme in ("http", "https") and (url.port or 1) > 0 and is_valid_uri(whole)
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError("S3: option endpoint must be a URL (such as http://127.0.0.1:9000) or a host (over https)")
    return whole


class S3Source:
    """Objects under a prefix. Version tag: the ETag, which S3 changes with the content.

    With the option ``revision``, a time, of a bucket that keeps versions: the objects as they were then, each pinned by
    its version id too. A listing of one directory, which S3 gives without its past, may then show directories that were
    empty at that time.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        options: S3Options = NO_OPTIONS,
        credentials: Mapping[str, str] | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self._bucket = bucket
        self._root = Root(prefix, self._has_keys, self._head)
        self._prefix = self._root.prefix
        self._connection = S3Connection(bucket, options, credentials or {}, timeouts)
        self._told = ToldDigests()
        self._reader = S3Reader(self._connection, self._told)
        self._at = options.revision
        self.revision = "" if self._at is None else self._at.astimezone(UTC).isoformat()
        """A listing has no name of its own here, unless it is of a time."""
        self.uri = f"s3://{bucket}/{self._prefix}"
        self._etags = EtagDigests(self.uri, usable=not self._connection.sse)
        self.identity = f"s3:{options.endpoint or ''}:{bucket}/{self._prefix}"

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        """See ``Source``."""
        prefix = self._key(directory) + "/" if directory else self._prefix
        found = False
        async for page in self._pages(Prefix=prefix, Delimiter="/"):
            objects = [
                SourceObject(self._path(item["Prefix"].removesuffix("/")), Kind.DIRECTORY)
                for item in page.get("CommonPrefixes", ())
            ]
            for item in page.get("Contents", ()):
                found = True
                if item["Key"] != prefix:  # the marker of this directory itself
                    objects.append(self._object(item))
            found = found or bool(objects)
            yield ListingPage(tuple(objects))
        if found or not prefix:
            self._root.holds_keys()
            yield ListingPage((), (directory,))
        elif not directory:
            yield await self._root.page(self.uri)
        else:
            raise SourceMissing(f"s3://{self._bucket}/{prefix}: there is nothing under this prefix")

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        """See ``Source``. Flat: a request for a thousand keys, not one for each directory."""
        if self._at is not None:
            async for page in self._tree_at():
                yield page
            return
        ranges = KeyRanges(self._keys, self._prefix)
        async with aclosing(ranges.pages()) as pages:
            async for listed in pages:
                if ranges.found or not self._prefix:
                    self._root.holds_keys()
                    yield listed
        if not ranges.found and self._prefix:
            yield await self._root.page(self.uri)

    async def _tree_at(self) -> AsyncIterator[ListingPage]:
        tree = FlatTree()
        run, found = tree.run(), False
        async for page in self._pages(Prefix=self._prefix):
            for item in page["Contents"]:
                found = True
                if item["Key"] != self._prefix:
                    run.add(self._object(item))
            yield run.take_page()
        if not found and self._prefix:
            yield await self._root.page(self.uri)
            return
        self._root.holds_keys()
        run.end()
        yield run.take_page()
        yield tree.finish()

    async def _keys(self, after: str, token: str, limit: int) -> KeyPage:
        """See ``AskPage``."""
        asked: dict[str, Any] = {"Prefix": self._prefix}
        if token:
            asked["ContinuationToken"] = token
        elif after:
            asked["StartAfter"] = after
        if limit:
            asked["MaxKeys"] = limit
        page = await self._list(self.uri, **asked)
        items = page.get("Contents", ())
        keys = [item["Key"] for item in items]
        objects = [None if item["Key"] == self._prefix else self._object(item) for item in items]
        return KeyPage(keys, objects, self._following(page, self.uri, token))

    async def stat(self, path: str) -> SourceObject | None:
        """See ``Source``. Both questions at once: is it a prefix, is it a key."""
        if not path:
            return SourceObject("", Kind.DIRECTORY)
        key = await self._root.key(path)
        return await prefix_or_key(path, self._has_keys(f"{self._key(path)}/"), self._head(path, key))

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        """See ``Source``."""
        await self._reader.read(await self._root.key(obj.path), obj, wanted, sink)

    def at_once(self) -> int | None:
        """See ``WireSource``."""
        return None

    def asking(self, obj: SourceObject, wanted: ByteRange) -> WireRequest | None:
        """See ``WireSource``."""
        key = self._root.known_key(obj.path)
        return None if key is None else self._reader.asking(key, obj, wanted)

    def digest_of(self, obj: SourceObject) -> Digest | None:
        """See ``DigestSource``: what an answer has told, else what the ETag may be."""
        return self._told.of(obj) or self._etags.of(etag_in(obj.version_tag) or "", obj.size or 0)

    def may_tell(self, obj: SourceObject) -> bool:
        """See ``AskedDigestSource``."""
        return self._told.worth_asking

    async def ask_digest(self, obj: SourceObject) -> Digest | None:
        """See ``AskedDigestSource``. A HEAD, as ranges are answered without the checksum of the whole."""
        key = await self._root.key(obj.path)
        asked: dict[str, Any] = {"Key": key, "ChecksumMode": "ENABLED", **self._connection.sse}
        etag, version = etag_in(obj.version_tag), version_in(obj.version_tag)
        if etag is not None:
            asked["IfMatch"] = f'"{etag}"'
        if version:
            asked["VersionId"] = version
        try:
            answer = await self._call("head_object", f"{self.uri}{obj.path}", **asked)
        except SourceUnavailable:
            raise  # it cannot be known now
        except SourceError:
            self._told.asked(None)
            raise
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        if headers.get("x-amz-server-side-encryption", "").startswith("aws:kms"):
            self._etags.disown()  # of this object for certain, and such keys are those of a bucket
        found = of_amz_headers(headers)
        self._told.asked(found)
        return found

    async def close(self) -> None:
        """See ``Source``."""
        await self._connection.close()

    # -- requests -------------------------------------------------------------------------------------------------

    async def _pages(self, **asked: str) -> AsyncIterator[dict[str, Any]]:
        """Pages as ``list_objects_v2`` gives them, of now or of the time that was asked for."""
        what = f"s3://{self._bucket}/{asked['Prefix']}"
        if self._at is not None:

            async def ask(**more: Any) -> dict[str, Any]:
                return await self._call("list_object_versions", what, **asked, **more)

            async for page in pages_at(ask, self._at):
                yield page
            return
        token = ""
        while True:
            page = await self._list(what, **asked, **({"ContinuationToken": token} if token else {}))
            yield page
            token = self._following(page, what, token)
            if not token:
                return

    @staticmethod
    def _following(page: Mapping[str, Any], what: str, token: str) -> str:
        """How to ask for the page behind this one, which was asked for with ``token``; empty at the end."""
        if not page["IsTruncated"]:
            return ""
        following: str = page.get("NextContinuationToken") or ""
        if not following or following == token:
            raise SourceUnavailable(f"{what}: the listing is cut off and says not where it goes on")
        return following

    async def _has_keys(self, prefix: str) -> bool:
        if self._at is not None:
            async for page in self._pages(Prefix=prefix):
                if page["Contents"]:
                    return True
            return False
        page = await self._list(f"s3://{self._bucket}/{prefix}", Prefix=prefix, MaxKeys=1)
        return bool(page.get("Contents"))

    async def _list(self, what: str, **asked: Any) -> dict[str, Any]:
        page = await self._call("list_objects_v2", what, **asked)
        if "IsTruncated" not in page:
            # botocore takes any document for a listing: a log-in page of a proxy would be an empty bucket.
            raise SourceUnavailable(f"{what}: the answer is no listing (check the endpoint)")
        return page

    async def _head(self, path: str, key: str) -> SourceObject | None:
        if self._at is not None:
            async for page in self._pages(Prefix=key):
                for item in page["Contents"]:  # in the order of keys: it is the first, or was not there
                    return replace(self._object(item), path=path) if item["Key"] == key else None
            return None
        try:
            item = await self._call("head_object", f"s3://{self._bucket}/{key}", Key=key, **self._connection.sse)
        except SourceMissing:
            return None  # a HEAD has no document that would tell a missing bucket; the listing beside it does
        return self._file(path, item["ContentLength"], item.get("ETag"), item.get("LastModified"))

    async def _call(self, operation: str, what: str, **asked: Any) -> dict[str, Any]:
        """One request for this bucket."""
        return await self._connection.with_credentials(lambda opened: self._ask(opened, operation, what, asked))

    async def _ask(self, opened: Opened, operation: str, what: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = await getattr(opened.client, operation)(Bucket=self._bucket, **asked)
            return answer
        except _FAILURES as error:
            raise translated(error, what) from error

    # -- keys and paths -------------------------------------------------------------------------------------------

    def _key(self, path: str) -> str:
        return self._prefix + path

    def _path(self, key: str) -> str:
        return key[len(self._prefix) :]

    def _object(self, item: Mapping[str, Any]) -> SourceObject:
        path = self._path(item["Key"])
        if path.endswith("/"):
            return SourceObject(path.removesuffix("/"), Kind.DIRECTORY)
        if item.get("Size") is None:
            raise SourceUnavailable(f"s3://{self._bucket}/{item['Key']}: the listing does not say how large it is")
        return self._file(path, item["Size"], item.get("ETag"), item.get("LastModified"), item.get("VersionId", ""))

    def _file(
        self, path: str, size: int, etag: str | None, modified: datetime | None, version_id: str = ""
    ) -> SourceObject:
        # Whole seconds: listings have milliseconds and answers do not, and the two must give one tag.
        mtime_ns = 0 if modified is None else int(modified.timestamp()) * 10**9
        return SourceObject(path, Kind.FILE, size, mtime_ns, tag_of(etag, size, mtime_ns, version_id))
