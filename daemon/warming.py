"""Warm-ups of a mount: which were asked for, how far they are, and how the next server goes on with them.

A warm-up is of a dataset, not of a revision: when another one is shown meanwhile, it goes on with that. What was asked
for is written down in the mount's runtime directory until it is done, so it outlives a server, but not the mount.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

import structlog
import trio

from daemon.warm_room import check_room
from dsfs import metrics
from dsfs.cache.node import NodeTier
from dsfs.catalog.lookup import Catalog
from dsfs.datasets.dataset import Dataset
from dsfs.datasets.selection import CATALOG, Batches, Found, Totals, matching, measure
from dsfs.errors import CacheFull, ConfigError, DsfsError, MountError, PinRefused, SourceChanged
from dsfs.fetch.disk import DISK
from dsfs.fetch.origin import RemoteFile
from dsfs.fetch.reader import Reader
from dsfs.fetch.warm import WarmUp
from dsfs.manifest.sizes import size_text

log = structlog.get_logger()

WARM_UP, PREHEAT, COMPLETION = "warm-up", "preheat", "completion"
_BATCH_FILES = 512
_REMEMBERED = 64  # warm-ups that have ended, for who asks how
_PREHEAT_AGAIN_S = (5.0, 15.0, 60.0, 300.0)
_LOOK_FOR_ROOM_S = 5.0
_IN_VAIN_AGAIN_S = 3600.0  # each try fetches it again


class State(StrEnum):
    """How far a warm-up is. ``failed``: nothing or not all of it came."""

    LISTING = "listing"
    WARMING = "warming"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody wants warm: written down, so only plain values. ``bytes_per_s`` None: as fast as it goes."""

    id: str
    dataset: str
    glob: str
    bytes_per_s: float | None


@dataclass(slots=True, eq=False)
class Job:
    """One warm-up while it runs, and how it ended."""

    asked: Asked
    what: str = WARM_UP
    state: State = State.LISTING
    message: str = ""
    totals: Totals = field(default_factory=lambda: Totals(0, 0, 0))
    warm: WarmUp | None = None
    pushed_out: bool = False  # some of what came has gone again
    started_s: float = field(default_factory=trio.current_time)
    ended_s: float | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    finished: trio.Event = field(default_factory=trio.Event)

    def as_json(self) -> dict[str, Any]:
        """What the control interface tells; sizes in bytes."""
        end_s = self.ended_s if self.ended_s is not None else trio.current_time()
        done = self.warm.progress() if self.warm else None
        return {
            "id": self.asked.id,
            "dataset": self.asked.dataset,
            "glob": self.asked.glob,
            "state": str(self.state),
            "message": self.message,
            "files": self.totals.files,
            "bytes": self.totals.bytes,
            "files_done": done.files_done if done else 0,
            "bytes_done": done.bytes_done if done else 0,
            "fetched_bytes": done.fetched_bytes if done else 0,
            "failed_files": done.failed_files if done else 0,
            "errors": list(done.errors) if done else [],
            "seconds": round(end_s - self.started_s, 3),
        }

    def end(self, state: State, message: str) -> None:
        self.state, self.message = state, message
        self.ended_s = trio.current_time()
        self.finished.set()

    def in_vain(self) -> bool:
        """Whether the next try would fetch again what cannot stay."""
        return self.pushed_out or (self.warm is not None and self.warm.in_vain)

    def failures(self) -> str:
        """The files that could not be brought in; "" if there are none."""
        done = self.warm.progress() if self.warm else None
        if done is None or not done.failed_files:
            return ""
        text = f"{done.failed_files} of {self.totals.files} files failed: {'; '.join(done.errors)}"
        more = done.failed_files - len(done.errors)
        return text + (f"; and {more} more" if more else "")

    def line(self) -> str:
        """For ``dsfs status``; "" when there is nothing to tell."""
        if self.state is State.WARMING and self.warm is not None:
            done = self.warm.progress()
            doing = "warming" if self.what == WARM_UP else self.what
            return (
                f"{doing}: {size_text(done.bytes_done)} of {size_text(self.totals.bytes)}, "
                f"{done.files_done} of {self.totals.files} files"
            )
        return f"{self.what} failed: {self.message}" if self.state is State.FAILED else ""


class Warming:
    """File side only. Jobs run in ``nursery``; ``datasets`` are those that are shown now."""

    def __init__(
        self,
        directory: str,
        tier: NodeTier,
        reader: Reader,
        nursery: trio.Nursery,
        datasets: Callable[[], Mapping[str, Dataset]],
    ) -> None:
        self._file = f"{directory}/warm.json"
        self._tier = tier
        self._reader = reader
        self._nursery = nursery
        self._datasets = datasets
        self._jobs: dict[str, Job] = {}
        self._from_before: list[Job] = []
        self._writing = trio.Lock()

    async def remember(self) -> None:
        """Learn what the server before this one was asked for, before anybody can ask how far that is."""
        for each in await trio.to_thread.run_sync(_read, self._file, limiter=DISK):
            self._jobs[each.id] = Job(each)
        self._from_before = list(self._jobs.values())

    def resume(self) -> None:
        """Go on with that, now that there are datasets."""
        for job in self._from_before:
            self._nursery.start_soon(self._run, job)
        self._from_before.clear()

    async def start(self, dataset: str, glob: str, bytes_per_s: float | None) -> Job:
        """Begin to warm what a glob names; written down before this returns."""
        ended = [known for known, each in self._jobs.items() if each.ended_s is not None]
        for known in ended[: max(0, len(ended) - _REMEMBERED)]:
            del self._jobs[known]
        asked = Asked(uuid.uuid4().hex[:12], dataset, glob, bytes_per_s)
        job = self._jobs[asked.id] = Job(asked)
        await self._write()
        self._nursery.start_soon(self._run, job)
        return job

    async def check(self, dataset: Dataset, glob: str) -> None:
        """Whether a warm-up would be refused, once it is listed. Raises PinRefused."""
        await dataset.settled.wait()
        if not dataset.catalog.sealed:
            raise PinRefused(f"{dataset.manifest.id}: is not listed: {dataset.message}")
        found = partial(matching, dataset.catalog.file, glob)
        try:
            await check_room(self._tier, await self._measure(dataset, glob, found), found, dataset.origin)
        except DsfsError as error:
            raise PinRefused(f"{dataset.manifest.id}: {error}") from error

    def job(self, job_id: str) -> Job:
        """Raises ConfigError for one that is not known (any more)."""
        if job_id not in self._jobs:
            raise ConfigError(f"{job_id}: no such warm-up")
        return self._jobs[job_id]

    def jobs(self) -> list[Job]:
        """The latest last."""
        return list(self._jobs.values())

    def line(self, dataset: str) -> str:
        """What the latest warm-up of a dataset has to say; "" if nothing."""
        of_dataset = [job for job in self._jobs.values() if job.asked.dataset == dataset]
        under_way = [job for job in of_dataset if job.ended_s is None]
        return (under_way or of_dataset)[-1].line() if of_dataset else ""

    def preheat_failed(self, dataset: Dataset) -> bool:
        """Whether the latest try to have a dataset warm has failed; another one follows."""
        job = self._jobs.get(_preheat_id(dataset))
        return job is not None and job.state is State.FAILED

    async def _run(self, job: Job) -> None:
        await self.carry_out(job)
        await self._write()  # not when the server stops, which ends this task before: the next one goes on

    async def carry_out(self, job: Job) -> None:
        """Until it is done, has failed or is cancelled; ``job`` says how. Only a cancel from outside gets out of it."""
        await self._carry_out(job, lambda: self._warm(job))

    async def _carry_out(self, job: Job, work: Callable[[], Awaitable[None]]) -> None:
        try:
            with job.scope:
                await work()
        except DsfsError as error:
            job.end(State.FAILED, str(error))
        except Exception as error:  # a bug here must not end the server
            log.exception("warm-up failed unexpectedly", dataset=job.asked.dataset)
            job.end(State.FAILED, f"{type(error).__name__} in the daemon (see its log)")
        else:
            if not job.scope.cancelled_caught:
                failures = job.failures()
                job.end(State.FAILED if failures else State.DONE, failures)
        finally:
            # Also when whoever runs it is cancelled: somebody may wait for its end. A warm-up that was asked for has
            # none then, as it is the server that stops: the next one goes on with it.
            if job.ended_s is None and (job.scope.cancelled_caught or job.what != WARM_UP):
                job.end(State.CANCELLED, "cancelled")
        log.info("warm-up ended", dataset=job.asked.dataset, state=str(job.state), reason=job.message)

    async def _warm(self, job: Job) -> None:
        """Walk through the revision that is shown; again, if another one is shown by then."""
        asked = job.asked
        while True:
            dataset = self._datasets().get(asked.dataset)
            if dataset is None:
                raise ConfigError("it is not shown any more")
            job.state, job.warm = State.LISTING, None
            await dataset.settled.wait()
            if self._datasets().get(asked.dataset) is not dataset:
                continue
            if not dataset.catalog.sealed:
                raise MountError(f"it is not listed: {dataset.message}")
            catalog = dataset.catalog
            is_shown = partial(self._is_shown, dataset, catalog)
            found = partial(matching, catalog.file, asked.glob)
            job.totals = await self._measure(dataset, asked.glob, found)
            await self._walk(job, dataset, found, is_shown)
            if is_shown():
                return

    def _is_shown(self, dataset: Dataset, catalog: Catalog) -> bool:
        return self._datasets().get(dataset.manifest.id) is dataset and dataset.catalog is catalog

    async def _walk(self, job: Job, dataset: Dataset, found: Callable[[], Found], is_shown: Callable[[], bool]) -> None:
        """Warm what was found in one revision, for as long as it is the one that is wanted."""

        async def next_batch() -> list[RemoteFile]:
            if not is_shown():
                return []
            return await trio.to_thread.run_sync(batches.next, _BATCH_FILES, limiter=CATALOG)

        def on_error(file: RemoteFile, error: DsfsError) -> None:
            if isinstance(error, SourceChanged):
                dataset.note_changed()

        await check_room(self._tier, job.totals, found, dataset.origin)
        stays = job.what != COMPLETION
        job.warm, job.state = WarmUp(self._reader, job.asked.bytes_per_s, on_error, stays=stays), State.WARMING
        batches, evicted_bytes = Batches(found(), dataset.origin), self._tier.evicted_bytes
        try:
            await job.warm.run(next_batch)
        finally:
            batches.close()
        if stays and is_shown() and self._tier.evicted_bytes > evicted_bytes:
            await self._check_kept(job, Batches(found(), dataset.origin))

    async def _measure(self, dataset: Dataset, glob: str, found: Callable[[], Found]) -> Totals:
        """Of what was found by a glob. Raises ConfigError where that names nothing."""
        totals = await trio.to_thread.run_sync(measure, found(), self._reader.block_bytes, limiter=CATALOG)
        if glob and not totals.files:
            raise ConfigError("; ".join(filter(None, (f"no file matches {glob}", dataset.catalog.refusal))))
        return totals

    async def _check_kept(self, job: Job, batches: Batches) -> None:
        """What was brought may have gone again. Raises CacheFull with the numbers."""
        gone = 0 if job.warm is None else -job.warm.progress().failed_files
        look = partial(self._reader.incomplete, uses=False)
        try:
            while batch := await trio.to_thread.run_sync(batches.next, _BATCH_FILES, limiter=CATALOG):
                gone += len(await trio.to_thread.run_sync(look, batch, limiter=DISK))
        finally:
            batches.close()
        if gone > 0:
            job.pushed_out, failures = True, job.failures()
            raise CacheFull(
                f"{gone} of {job.totals.files} files were evicted again: others of a higher priority, or what came "
                "since, have their room (dsfs warm --pin holds them; or name less, or raise --cache-size)"
                f"{'; ' if failures else ''}{failures}"
            )

    # -- preheat --------------------------------------------------------------------------------------------------

    async def keep_warm(self, dataset: Dataset, when_warm: Callable[[], Awaitable[None]]) -> None:
        """Warm a dataset when it is listed and whenever another revision is shown; what fails is tried again, ever
        more slowly. ``when_warm`` is called each time that all of it is here. Until cancelled."""
        attempt = 0
        job: Job | None = None
        try:
            while True:
                swapped = dataset.swapped
                job = self._jobs[_preheat_id(dataset)] = Job(_preheat_of(dataset), PREHEAT)
                await self.carry_out(job)
                if job.state is State.DONE:
                    attempt = 0
                    await when_warm()
                if job.in_vain() and not self._tier.statistics().trouble:
                    await self._other_room(swapped)
                else:
                    with trio.move_on_after(_PREHEAT_AGAIN_S[attempt] if job.state is State.FAILED else math.inf):
                        await swapped.wait()
                attempt = min(attempt + (job.state is State.FAILED), len(_PREHEAT_AGAIN_S) - 1)
        finally:
            if self._jobs.get(_preheat_id(dataset)) is job:  # else the one that follows this one has begun
                del self._jobs[_preheat_id(dataset)]

    async def _other_room(self, swapped: trio.Event) -> None:
        """Until what could not stay might: what takes its room has changed, or it is another revision."""

        def takers() -> tuple[object, ...]:
            caches = {name: dataset.manifest.cache for name, dataset in self._datasets().items()}
            return caches, self._tier.index.pinned_whole_bytes

        before, until_s = takers(), trio.current_time() + _IN_VAIN_AGAIN_S
        while takers() == before and trio.current_time() < until_s:
            with trio.move_on_after(_LOOK_FOR_ROOM_S):
                await swapped.wait()
                return

    async def complete(self, dataset: Dataset, catalog: Catalog, totals: Totals, found: Callable[[], Found]) -> None:
        """Bring in what was found in one revision behind the readers, for as long as it is shown; ``totals`` is what it
        comes to. Failures are told."""
        manifest = dataset.manifest
        asked = Asked(f"completion-{manifest.namespace}-{manifest.name}", manifest.id, "", None)
        job = self._jobs[asked.id] = Job(asked, COMPLETION, totals=totals)
        is_shown = partial(self._is_shown, dataset, catalog)
        await self._carry_out(job, lambda: self._walk(job, dataset, found, is_shown))
        fetched_bytes = job.warm.progress().fetched_bytes if job.warm else 0
        metrics.PREFETCH_BYTES.labels(manifest.namespace, manifest.name, COMPLETION).inc(fetched_bytes)

    async def warm_revision(self, dataset: Dataset, catalog_file: str) -> None:
        """Warm a revision that is not shown yet. Raises CacheFull with what kept it from being warm."""
        job, found = Job(_preheat_of(dataset), PREHEAT), partial(matching, catalog_file, "")

        async def work() -> None:
            job.totals = await self._measure(dataset, "", found)
            await self._walk(job, dataset, found, lambda: True)

        await self._carry_out(job, work)
        if job.state is not State.DONE:
            raise CacheFull(job.line())

    async def _write(self) -> None:
        async with self._writing:
            asked = [job.asked for job in self._jobs.values() if job.what == WARM_UP and job.ended_s is None]
            try:
                await trio.to_thread.run_sync(_replace, self._file, asked, limiter=DISK)
            except OSError as error:  # it is carried out all the same; only a server that dies forgets it
                log.warning("warm-ups cannot be written down", file=self._file, reason=str(error))


def _preheat_id(dataset: Dataset) -> str:
    return f"preheat-{dataset.manifest.namespace}-{dataset.manifest.name}"


def _preheat_of(dataset: Dataset) -> Asked:
    return Asked(_preheat_id(dataset), dataset.manifest.id, "", None)


def _replace(path: str, asked: list[Asked]) -> None:
    temporary = f"{path}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump([asdict(each) for each in asked], file)
    os.rename(temporary, path)


def _read(path: str) -> list[Asked]:
    try:
        with open(path, encoding="utf-8") as file:
            return [Asked(**each) for each in json.load(file)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        log.warning("warm-ups that were asked for cannot be read", file=path, reason=str(error))
        return []
