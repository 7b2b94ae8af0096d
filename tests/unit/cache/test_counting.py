"""What is counted of an object that some threads bring while another evicts it."""

from __future__ import annotations

import random
import sys
import threading
from pathlib import Path

import pytest

from dsfs.cache.blockmap import BlockMap
from dsfs.cache.index import Index
from dsfs.cache.layout import open_layout
from dsfs.cache.node import NodeTier
from dsfs.errors import CacheFull

BLOCK = 4096
KEY = "cd" * 32
BOOT = b"b" * 16


def test_what_comes_while_it_goes_is_counted_as_it_is(tmp_path: Path) -> None:
    layout = open_layout(str(tmp_path / "cache"))
    tier = NodeTier(layout, Index(layout.index), lambda: 1 << 30, BOOT, BLOCK)
    obj = tier.create(KEY, 9 * BLOCK)
    assert isinstance(obj, BlockMap)
    data = random.Random(1).randbytes(BLOCK)

    def bring(first: int) -> None:
        for number in range(600):
            tier.publish(obj, first + number % 4, data, "team/set")  # the last block never comes: it is never complete

    def evict() -> None:
        while any(bringer.is_alive() for bringer in bringers):
            tier.evict(KEY)

    bringers = [threading.Thread(target=bring, args=(first,)) for first in (0, 4)]
    threads = [*bringers, threading.Thread(target=evict)]
    switched_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # between any two steps
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switched_s)
    tier.index.flush(1.0)
    rows = {row.key: (row.cached_bytes, row.content_bytes) for row in tier.index.everything()}
    here = obj.present_bytes()
    assert rows == ({KEY: (obj.space_bytes(), here)} if here else {})
    assert tier.index.used_bytes == (obj.space_bytes() if here else 0)
    tier.index.close(2.0)
    layout.release()


def test_room_that_others_were_quicker_to_take_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = open_layout(str(tmp_path / "cache"))
    tier = NodeTier(layout, Index(layout.index), lambda: 1 << 20, BOOT, BLOCK)
    for number in range(30):
        tier.put_whole(f"{number:064x}", 8 * BLOCK, bytes(8 * BLOCK), "team/set")
    really_evict, taken_bytes = tier.evict, []

    def evict_for_another(key: str) -> int:
        freed = really_evict(key)
        tier.index.flush(1.0)
        if len(taken_bytes) < 4 and tier.reserve(freed):
            taken_bytes.append(freed)
        return freed

    monkeypatch.setattr(tier, "evict", evict_for_another)
    tier.make_room(16 * BLOCK, "")
    assert len(taken_bytes) == 4
    tier.release(sum(taken_bytes) + 16 * BLOCK)
    with pytest.raises(CacheFull):
        tier.make_room((1 << 20) + 1)
    tier.index.close(2.0)
    layout.release()
