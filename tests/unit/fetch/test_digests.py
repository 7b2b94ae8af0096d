"""What a source lists the hash of is compared with it: before it is served if small, behind its readers if large."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
import trio

from dsfs import metrics
from dsfs.errors import SourceUnavailable
from dsfs.fetch.patience import ATTEMPTS
from dsfs.fetch.queue import Priority
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.model import SourceObject
from dsfs.ranges import ByteRange
from dsfs.sources.base import Sink
from dsfs.sources.digest import Digest, digest_of, git_blob
from dsfs.sources.registry import build_source
from tests.unit.fetch.test_flights import LARGE, SMALL, FakeSource, World, _quiet_log, content, run

__all__ = ["_quiet_log", "run"]  # fixtures


class Listing(FakeSource):
    """Lists the hash of what it should send."""

    def digest_of(self, obj: SourceObject) -> Digest | None:
        return Digest("sha256", hashlib.sha256(content(obj.size or 0)).hexdigest())


async def lying(_source: FakeSource, _obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
    await sink.write(wanted.start, b"?" * wanted.length)


def told(there: World) -> Listing:
    there.origin.source = source = Listing(there.bridge)
    return source


def dropped() -> float:
    return sum(sample.value for sample in metrics.CORRUPT_BLOCKS.collect()[0].samples if sample.name.endswith("_total"))


def requests() -> float:
    return sum(
        sample.value for sample in metrics.ORIGIN_REQUESTS.collect()[0].samples if sample.name.endswith("_total")
    )


def test_a_small_lie_is_never_served_nor_kept(run: Callable[..., None]) -> None:
    async def test(there: World) -> None:
        source, before = told(there), dropped()
        source.plans = [lying] * ATTEMPTS
        with pytest.raises(SourceUnavailable, match="is not the sha256"):
            await there.read(SMALL, 0, 10)
        assert dropped() - before == ATTEMPTS
        file = there.file(SMALL)
        assert there.tier.open(file.key, SMALL, "") is None
        await there.read(SMALL, 0, SMALL)  # it tells the truth again
        await there.idle()
        assert there.tier.holds_all(file.key, SMALL, "")

    run(test, rate=100.0)


def test_a_small_lie_is_asked_again(run: Callable[..., None]) -> None:
    async def test(there: World) -> None:
        told(there).plans = [lying]
        await there.read(SMALL, 0, SMALL)

    run(test, rate=100.0)


@pytest.mark.parametrize("lies", [True, False])
def test_a_large_lie_is_dropped_behind_its_readers(run: Callable[..., None], lies: bool) -> None:
    async def test(there: World) -> None:
        source, before = told(there), dropped()
        source.plans = [lying] if lies else []
        file = there.file(LARGE)
        await there.reader.fetch_whole(file, Priority.WARM)
        await there.idle()
        while there.flights.checks.under_way:  # noqa: ASYNC110  # nothing says when it ends but that it is over
            await trio.sleep(0.01)
        assert there.tier.holds_all(file.key, LARGE, "") is not lies
        assert dropped() - before == lies
        await there.read(LARGE, 0, LARGE)

    run(test, rate=1.0)


class Guessing(Listing):
    """Has something in its listing that may be an MD5."""

    guess = "0" * 32

    def digest_of(self, obj: SourceObject) -> Digest | None:
        return Digest("md5", self.guess, disown=self.disown) if self.guess else None

    def disown(self) -> None:
        self.guess = ""


def guesses(there: World, guess: str = "0" * 32) -> Guessing:
    there.origin.source = source = Guessing(there.bridge)
    source.guess = guess
    return source


async def all_checked(there: World) -> None:
    await there.idle()
    while there.flights.checks.under_way:  # noqa: ASYNC110  # nothing says when it ends but that it is over
        await trio.sleep(0.01)


def guesses_and_lies_once(there: World, size: int) -> tuple[Guessing, str]:
    """A source whose guess is right, and of which the first answer is not; and what it guesses."""
    right = hashlib.md5(content(size)).hexdigest()
    source = guesses(there, right)
    source.plans = [lying]
    return source, right


def test_what_only_looks_like_a_hash_costs_one_more_fetch(run: Callable[..., None]) -> None:
    async def test(there: World) -> None:
        source, before = guesses(there), dropped()
        await there.read(SMALL, 0, SMALL)
        await there.idle()
        assert source.guess == ""  # the same bytes twice
        assert dropped() == before
        assert there.tier.holds_all(there.file(SMALL).key, SMALL, "")

    run(test, rate=100.0)


def test_what_came_wrong_once_is_told_apart_from_a_hash_that_is_none(run: Callable[..., None]) -> None:
    async def test(there: World) -> None:
        (source, right), before = guesses_and_lies_once(there, SMALL), dropped()
        await there.read(SMALL, 0, SMALL)
        assert source.guess == right
        assert dropped() - before == 1

    run(test, rate=100.0)


def test_a_large_one_is_dropped_once_for_what_is_no_hash(run: Callable[..., None]) -> None:
    async def test(there: World) -> None:
        source, before = guesses(there), dropped()
        file = there.file(LARGE)
        for kept in (False, True):
            await there.reader.fetch_whole(file, Priority.WARM)
            await all_checked(there)
            assert there.tier.holds_all(file.key, LARGE, "") is kept
        assert source.guess == ""
        assert dropped() == before, "and nobody is told that it was wrong"

    run(test, rate=1.0)


def test_a_large_one_that_came_wrong_once_is_told(run: Callable[..., None]) -> None:
    async def test(there: World) -> None:
        (source, right), before = guesses_and_lies_once(there, LARGE), dropped()
        for kept in (False, True):
            await there.reader.fetch_whole(there.file(LARGE), Priority.WARM)
            await all_checked(there)
            assert there.tier.holds_all(there.file(LARGE).key, LARGE, "") is kept
            assert dropped() - before == kept
        assert source.guess == right

    run(test, rate=1.0)


def test_large_ones_that_are_read_once_are_not_all_dropped_for_what_is_no_hash(run: Callable[..., None]) -> None:
    async def test(there: World) -> None:
        source, before = guesses(there), dropped()
        kept = []
        for size in range(LARGE, LARGE + 5):
            await there.reader.fetch_whole(there.file(size), Priority.WARM)
            await all_checked(there)
            kept.append(there.tier.holds_all(there.file(size).key, size, ""))
        assert kept == [False, False, True, True, True]
        assert (source.guess, dropped()) == ("", before)

    run(test, rate=1.0)


class Asked(FakeSource):
    """Lists no hash, and tells one when it is asked."""

    told: Digest | None = None
    trouble: Exception = SourceUnavailable("it does not answer")
    questions = 0

    def may_tell(self, obj: SourceObject) -> bool:
        return True

    async def ask_digest(self, obj: SourceObject) -> Digest | None:
        self.questions += 1
        if self.told is None:
            raise self.trouble
        return self.told


@pytest.mark.parametrize(("algorithm", "right"), [("crc64nvme", True), ("crc32c", True), ("crc32c", False)])
def test_a_large_file_is_asked_for_once(run: Callable[..., None], algorithm: str, right: bool) -> None:
    async def test(there: World) -> None:
        there.origin.source = source = Asked(there.bridge)
        data = content(LARGE) if right else content(LARGE)[:-1]
        source.told = Digest(algorithm, Digest(algorithm, "").hex_of(memoryview(data)))
        file, before = there.file(LARGE), requests()
        await there.reader.fetch_whole(file, Priority.WARM)
        await all_checked(there)
        assert there.tier.holds_all(file.key, LARGE, "") is right
        assert source.questions == 1
        assert requests() - before == len(source.reads) + 1, "a question for a hash is a request like a read"

    run(test, rate=1.0)


@pytest.mark.parametrize("trouble", [SourceUnavailable("it does not answer"), ZeroDivisionError("a bug")])
def test_who_cannot_be_asked_does_not_keep_a_file_from_the_kernel(run: Callable[..., None], trouble: Exception) -> None:
    async def test(there: World) -> None:
        there.origin.source = source = Asked(there.bridge)
        source.trouble = trouble
        file = there.file(LARGE)
        await there.reader.fetch_whole(file, Priority.WARM)
        await all_checked(there)
        assert there.reader.complete(file) is not None

    run(test, rate=1.0)


@pytest.mark.parametrize(
    ("algorithm", "value"),
    [  # of "123456789", as the catalogue of CRC algorithms has them
        ("crc32", "cbf43926"),
        ("crc32c", "e3069283"),
        ("crc64nvme", "ae8b14860a799888"),
        ("md5", "25f9e794323b453885f5181f1b624d0b"),
    ],
)
def test_hashers_take_pieces(algorithm: str, value: str) -> None:
    hasher = Digest(algorithm, value).hasher(9)
    for piece in (b"12", b"", b"345678", b"9"):
        hasher.update(memoryview(piece))
    assert hasher.hexdigest() == value


def test_digests() -> None:
    assert git_blob("ce013625030ba8dba906f756967f9e9ca394464a").is_of(memoryview(b"hello\n"))  # git hash-object
    assert not git_blob("ce013625030ba8dba906f756967f9e9ca394464a").is_of(memoryview(b"hello"))


def test_which_tags_are_believed() -> None:
    def of(type_: SourceType, uri: str, tag: str) -> Digest | None:
        return digest_of(build_source(SourceSpec(type=type_, uri=uri), {}), SourceObject("f", version_tag=tag))

    long, short = "a" * 64, "b" * 40
    assert of(SourceType.HUGGING_FACE, "huggingface://a/b", f"lfs:{long}") == Digest("sha256", long)
    assert of(SourceType.HUGGING_FACE, "huggingface://a/b", f"git:{short}") == git_blob(short)
    assert of(SourceType.MODEL_SCOPE, "modelscope://a/b", f"sha256:{long}@{short}") == Digest("sha256", long)
    assert of(SourceType.MODEL_SCOPE, "modelscope://a/b", "size:7") is None
