"""What is counted of an object that some threads bring while another evicts it."""

from __future__ import annotations

import random
import sys
import threading
from pathlib import Path

from dsfs.cache.blockmap import BlockMap
from dsfs.cache.index import Index
from dsfs.cache.layout import open_layout
from dsfs.cache.node import NodeTier

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
