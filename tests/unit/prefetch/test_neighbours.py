"""Files of a directory in its order are brought ahead; readers that jump about cost nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfs.prefetch.neighbours import BELIEVED_STEPS, LOOK_FILES, MOST_BYTES, MOST_FILES, Neighbour, Neighbours
from dsfs.prefetch.worth import Worth
from dsfs.ranges import KiB, MiB


@dataclass
class Simulator:
    """A cache, and readers that come to files; what is asked for is there at once. Numbers go up with names."""

    directories: dict[int, list[Neighbour]]
    policy: Neighbours = field(default_factory=lambda: Neighbours(Worth()))
    cached: set[int] = field(default_factory=set)
    read_files: set[int] = field(default_factory=set)
    asked: list[int] = field(default_factory=list)
    misses: int = 0

    def looks(self) -> bool:
        """Whether to look what is behind a file."""
        return True

    def behind(self, directory: int, ino: int, limit: int) -> list[Neighbour]:
        return [each for each in self.directories[directory] if each.ino > ino][:limit]

    def read(self, directory: int, ino: int) -> None:
        self.read_files.add(ino)
        walk = self.policy.follows(ino)
        if walk is not None:
            brought = self.policy.step(walk, ino)
            assert sum(each.size_bytes for each in brought[1:]) <= MOST_BYTES
            assert len(brought) <= MOST_FILES
            self.asked += [each.ino for each in brought]
            self.cached.update(each.ino for each in brought)
            if (wanted := self.policy.wants_more(walk)) is not None:
                self.policy.more(walk, self.behind(directory, *wanted))
        if ino not in self.cached:
            self.misses += 1
            self.cached.add(ino)
            if walk is None and self.looks():
                self.policy.begin(directory, self.behind(directory, ino, LOOK_FILES))


@dataclass
class Seldom(Simulator):
    """Looks only where that has come to something lately."""

    looked: int = 0

    def looks(self) -> bool:
        worth = self.policy.worth_beginning()
        self.looked += worth
        return worth


def directory(number: int, files: int, size: int = 100 * KiB) -> list[Neighbour]:
    return [Neighbour(number * 100_000 + place, size) for place in range(files)]


@given(st.integers(1, 300), st.integers(1, 6 * MiB), st.integers(1, 8), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=30)
def test_in_order_all_but_the_first_few_are_there(files: int, size: int, readers: int, rng: random.Random) -> None:
    there = Simulator({1: directory(1, files, size)})
    waiting = [each.ino for each in there.directories[1]]
    while waiting:
        there.read(1, waiting.pop(rng.randrange(min(readers, len(waiting)))))
    assert there.misses <= BELIEVED_STEPS + 2 + 3 * readers
    assert len(there.asked) == len(set(there.asked)), "nothing is asked for twice"
    there.policy.end()
    late = 0 if readers == 1 else 2 * readers  # one may fall so far behind that its file was given up
    assert there.policy.worth.wasted_total <= late * size
    assert there.policy._where == {}


@given(st.randoms(use_true_random=True))  # the other ones may be in any order, also in the directory's
@settings(deadline=None, max_examples=20)
def test_at_random_hardly_anything_is_asked_for(rng: random.Random) -> None:
    there = Simulator({number: directory(number, 1000) for number in range(1, 6)})
    for _read in range(500):
        number = rng.randrange(1, 6)
        there.read(number, rng.choice(there.directories[number]).ino)
    there.policy.end()
    assert len(there.asked) <= 30


def test_an_epoch_over_one_directory_in_no_order_is_hardly_ever_taken_for_a_walk() -> None:
    asked = 0
    for seed in range(8):
        rng = random.Random(seed)
        there = Seldom({1: directory(1, 2000)})
        there.cached = {each.ino for each in rng.sample(there.directories[1], 1800)}  # so that walks live long
        for each in rng.sample(there.directories[1], 2000):
            there.read(1, each.ino)
        asked += len(there.asked)
    assert asked <= 8 * LOOK_FILES


@pytest.mark.parametrize("seed", range(8))
def test_what_is_behind_is_seldom_looked_at_while_readers_jump_about_and_in_order_is_found_again(seed: int) -> None:
    rng = random.Random(seed)
    there = Seldom({number: directory(number, 5000) for number in range(1, 4)})
    for _read in range(200):
        there.read(1, rng.choice(there.directories[1]).ino)
    looked, misses = there.looked, there.misses
    for _read in range(400):
        there.read(1, rng.choice(there.directories[1]).ino)
    assert there.looked - looked <= (there.misses - misses) / 4
    misses = there.misses
    for each in there.directories[2][:500]:
        there.read(2, each.ino)
    assert there.misses - misses <= 2 * LOOK_FILES + BELIEVED_STEPS
    looked = there.looked
    there.read(3, there.directories[3][0].ino)
    assert there.looked == looked + 1, "they are believed at once again"


@given(st.lists(st.integers(1, LOOK_FILES - 1), min_size=40, max_size=120))
@settings(deadline=None, max_examples=40)
def test_what_is_skipped_is_counted_and_costs(steps: list[int]) -> None:
    there = Simulator({1: directory(1, 1200)})
    ino = 100_000
    for step in steps:
        there.read(1, ino)
        ino += step
    there.policy.end()
    brought = set(there.asked)
    size = 100 * KiB
    assert there.policy.worth.wasted_total == len(brought - there.read_files) * size


def test_several_directories_at_once() -> None:
    there = Simulator({number: directory(number, 200) for number in range(1, 9)})
    for place in range(200):
        for number in there.directories:
            there.read(number, there.directories[number][place].ino)
    assert there.misses <= 8 * (BELIEVED_STEPS + 1)


def test_more_directories_than_are_remembered() -> None:
    there = Simulator({number: directory(number, 20) for number in range(1, 101)})
    for number in there.directories:
        for place in range(10):
            there.read(number, there.directories[number][place].ino)
    assert len(there.policy._walks) <= 32
    there.policy.end()
    assert there.policy._where == {}


def test_a_policy_that_wastes_gets_less_and_comes_back() -> None:
    worth = Worth()
    assert worth.allowed(64) == 64
    worth.note(0, 64 * MiB)
    assert 1 <= worth.allowed(64) < 16
    worth.note(0, 4096 * MiB)
    assert worth.allowed(64) == 1
    for _round in range(64):
        worth.note(256 * MiB, 0)
    assert worth.allowed(64) == 64
    worth.note(0, 100)
    worth.take_back(100)
    assert worth.wasted_total == 64 * MiB + 4096 * MiB
