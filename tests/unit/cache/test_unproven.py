"""Which objects are still to be compared with their source's hash, from one server to the next."""

from __future__ import annotations

from pathlib import Path

from dsfs.cache.unproven import Unproven

KEY = "ab" * 32


def test_what_is_put_off_is_the_next_servers_unless_it_goes(tmp_path: Path) -> None:
    unproven = Unproven(f"{tmp_path}/unproven")
    unproven.add(KEY)
    unproven.put_off(KEY)
    assert KEY not in unproven
    again = Unproven(f"{tmp_path}/unproven")
    assert KEY in again
    again.put_off(KEY)
    again.add(KEY)  # the object comes anew
    assert KEY in again
    again.put_off(KEY)
    again.discard(KEY)  # and is evicted
    assert KEY not in Unproven(f"{tmp_path}/unproven")
