"""Opens that the kernel serves alone: a listener (daemon/open_listener.py) sees them; here they are counted, by dataset
and pod, and keep what is used from being evicted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
import trio
from prometheus_client import Counter

from dsfs import metrics

log = structlog.get_logger()

_LISTENER = os.path.join(os.path.dirname(__file__), "open_listener.py")
_KILLED_S = 1.0  # one that waits for an answer of this server ends with the next one
_MOST_PODS = 200
_FORGET_POD_S = 3600.0
_OTHER = "other"
_AGAIN_S = 10.0
_NOTED_AT_ONCE = 25  # uses noted before the loop lets others have their turn: well below a millisecond
_NOTE_EVERY_S = 0.02
_MOST_UNNOTED = 1_000_000


@dataclass(slots=True)
class _Series:
    opens: Counter
    bytes: Counter
    last_s: float


class Opens:
    """``note_use(name, nodeid)`` is called for files that were used lately: seldom, and in small batches."""

    def __init__(self, note_use: Callable[[str, int], None]) -> None:
        self._note_use = note_use
        self._watched: dict[str, tuple[str, str]] = {}  # name → path, device
        self._confirmed: set[str] = set()
        self._stdin: trio.abc.SendStream | None = None
        self._series: dict[tuple[str, str], _Series] = {}
        self._unnoted: deque[tuple[str, int]] = deque(maxlen=_MOST_UNNOTED)
        self._nothing_to_note = trio.lowlevel.ParkingLot()
        self._say_lock = trio.Lock()

    async def run(self) -> None:
        """Keep a listener running. What goes wrong is logged, and ends nothing but the counting."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._note_uses)
            while True:
                if not await self._listen():
                    nursery.cancel_scope.cancel()
                    return
                await trio.sleep(_AGAIN_S)

    async def watch(self, name: str, path: str, dev: str) -> None:
        """Count the opens of a dataset from now on; its connection has turned openless."""
        self._watched[name] = path, dev
        await self._say({"watch": name, "path": path, "dev": dev})

    async def forget(self, name: str) -> None:
        """A dataset is shown no longer."""
        if self._watched.pop(name, None) is None:
            return
        self._confirmed.discard(name)
        metrics.OPENS_WATCHED.remove(*name.split("/"))
        for known, pod in list(self._series):
            if known == name:
                self._remove(known, pod)
        await self._say({"forget": name})

    async def _say(self, order: dict[str, str]) -> None:
        async with self._say_lock:
            if self._stdin is not None:
                try:
                    await self._stdin.send_all(json.dumps(order).encode() + b"\n")
                except trio.BrokenResourceError:
                    return  # the next one is told everything anew

    async def _listen(self) -> bool:
        """One life of a listener; False when another one would not do better."""
        argv = [sys.executable, "-I", "-S", _LISTENER]  # it needs the standard library only
        process = await trio.lowlevel.open_process(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self._stdin = process.stdin
            for name, (path, dev) in list(self._watched.items()):
                await self._say({"watch": name, "path": path, "dev": dev})
            assert process.stdout is not None
            text = b""
            async for chunk in process.stdout:
                *lines, text = (text + chunk).split(b"\n")
                for line in lines:
                    if not self._heard(json.loads(line)):
                        return False
        finally:
            self._stdin = None
            for name in self._confirmed:
                metrics.OPENS_WATCHED.labels(*name.split("/")).set(0)
            self._confirmed.clear()
            process.kill()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _KILLED_S):
                await process.wait()
        log.warning("the listener for opens ended", status=process.returncode)
        return True

    def _heard(self, what: dict[str, Any]) -> bool:
        if "unable" in what:
            log.info("opens that the kernel serves alone are not counted", reason=what["unable"])
            return False
        if "watching" in what:
            self._confirmed.add(what["watching"])
            self._tell_share(1.0)
        elif "failed" in what:
            log.info("opens of a dataset are not counted", dataset=what["failed"], reason=what["reason"])
        else:
            for name, pod, count, size_bytes in what["opens"]:
                if name in self._watched:
                    self._count(name, pod, count, size_bytes)
            metrics.OPEN_OVERFLOWS.inc(what["overflows"])
            self._tell_share(what["share"])
            for name, nodeids in what["used"].items():
                self._unnoted.extend((name, nodeid) for nodeid in nodeids)
            self._nothing_to_note.unpark_all()
        return True

    def _tell_share(self, share: float) -> None:
        for name in self._confirmed:
            metrics.OPENS_WATCHED.labels(*name.split("/")).set(share)

    def _count(self, name: str, pod: str, count: int, size_bytes: int) -> None:
        now_s = trio.current_time()
        series = self._series.get((name, pod))
        if series is None:
            for known, last in [(known, each.last_s) for known, each in self._series.items()]:
                if now_s - last > _FORGET_POD_S:
                    self._remove(*known)
            if pod and len(self._series) >= _MOST_PODS and pod != _OTHER:
                self._count(name, _OTHER, count, size_bytes)
                return
            labels = (*name.split("/"), pod)
            series = _Series(metrics.OPENS.labels(*labels), metrics.OPENED_BYTES.labels(*labels), now_s)
            self._series[name, pod] = series
        series.opens.inc(count)
        series.bytes.inc(size_bytes)
        series.last_s = now_s

    def _remove(self, name: str, pod: str) -> None:
        del self._series[name, pod]
        metrics.OPENS.remove(*name.split("/"), pod)
        metrics.OPENED_BYTES.remove(*name.split("/"), pod)

    async def _note_uses(self) -> None:
        while True:
            if not self._unnoted:
                await self._nothing_to_note.park()
            await trio.sleep(_NOTE_EVERY_S)
            for _ in range(min(_NOTED_AT_ONCE, len(self._unnoted))):
                self._note_use(*self._unnoted.popleft())
