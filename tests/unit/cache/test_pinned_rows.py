"""Pins and priorities in the index, against a dictionary."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from dsfs.cache.index import Index

KEYS = [f"{number:064x}" for number in range(4)]
WHOLE = 100
a_key, a_dataset = st.sampled_from(KEYS), st.sampled_from("ab")
events = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "use", "remove", "flush", "pin", "pin others", "unpin", "priority", "again"]),
        st.sets(a_key, min_size=1),
        a_dataset,
        st.integers(-2, 2),
    ),
    max_size=25,
)


@given(events)
@settings(deadline=None, max_examples=80)
def test_what_is_pinned_is_no_victim_and_is_counted(events: list[tuple[str, set[str], str, int]]) -> None:
    size: dict[str, int] = {}
    owners: dict[str, set[str]] = {}
    pins: dict[str, set[str]] = {"a": set(), "b": set()}
    priority = {"a": 0, "b": 0}
    with tempfile.TemporaryDirectory() as directory:
        index = Index(directory)
        for number, (what, keys, dataset, worth) in enumerate(events):
            match what:
                case "add":
                    for key in sorted(keys):
                        index.add(key, 10, 10, dataset)
                        size[key] = size.get(key, 0) + 10
                        owners.setdefault(key, set()).add(dataset)
                case "use":
                    for key in keys & size.keys():
                        index.use(key, dataset)
                        owners[key].add(dataset)
                case "remove":
                    for key in keys:
                        index.remove(key)
                        size.pop(key, None)
                        owners.pop(key, None)
                case "flush":
                    index.flush(1.0)
                case "pin":
                    before = index.pinned_whole_bytes
                    more = index.unpinned_space((key, WHOLE) for key in sorted(keys))
                    index.pin(dataset, number, ((key, WHOLE) for key in sorted(keys)))
                    assert index.pinned_whole_bytes == before + more
                    pins[dataset] |= keys
                case "pin others":  # as after a resync
                    index.pin(dataset, number, ((key, WHOLE) for key in sorted(keys)))
                    index.unpin_others(dataset, number)
                    pins[dataset] = set(keys)
                case "unpin":
                    index.unpin_others(dataset, None)
                    pins[dataset] = set()
                case "priority":
                    index.set_priority(dataset, worth)
                    priority[dataset] = worth
                case "again":
                    index.close(2.0)
                    index = Index(directory)
                    assert index.was_clean
        index.flush(3.0)
        held = pins["a"] | pins["b"]
        victims = list(index.victims_first())
        assert {row.key for row in victims} == size.keys() - held
        assert len(victims) == len(size.keys() - held)
        worths = [max(priority[owner] for owner in owners[row.key]) for row in victims]
        assert [row.priority for row in victims] == worths == sorted(worths)
        assert {row.key: row.cached_bytes for row in index.everything()} == size
        assert [key for key in KEYS if index.pinned(key)] == sorted(held)
        assert [key for key in KEYS if key in index] == sorted(size)
        assert index.pinned_whole_bytes == len(held) * WHOLE
        for dataset, keys in pins.items():
            assert index.pinned_bytes(dataset) == sum(size.get(key, 0) for key in keys)
        assert index.used_bytes == sum(size.values())
        index.close(4.0)


def test_the_index_of_an_older_dsfs_is_begun_anew(tmp_path: Path) -> None:
    index = Index(str(tmp_path))
    index.add(KEYS[0], 10, 10, "a")
    index.flush(0.0)
    index._rows.note("#format", 1)
    index.close(1.0)
    again = Index(str(tmp_path))
    assert not again.was_clean
    assert list(again.everything()) == []
    assert again.used_bytes == 0
    again.close(2.0)
