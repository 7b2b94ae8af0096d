"""Proofs of entitlement on disk: kept by source and credentials, without either."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dsfs.datasets.proofs import Proofs

SECRET = {"access-key": "fake-access-1", "secret-key": "fake-secret-2"}


def test_a_proof_is_of_one_source_and_one_set_of_credentials(tmp_path: Path) -> None:
    dataset = tmp_path / "team.data"
    dataset.mkdir()
    proofs = Proofs(str(tmp_path))
    made = proofs.fingerprint("s3::bucket/", SECRET)
    assert not proofs.has(str(dataset), made)
    proofs.add(str(dataset), made)
    again = Proofs(str(tmp_path))  # another server
    assert again.has(str(dataset), again.fingerprint("s3::bucket/", dict(reversed(SECRET.items()))))
    for identity, credentials in (
        ("s3::other/", SECRET),
        ("s3::bucket/", {**SECRET, "secret-key": "fake-secret-3"}),
        ("s3::bucket/", {"access-key": "fake-access-1secret-key", "": "fake-secret-2"}),
        ("s3::bucket/", {}),
    ):
        assert not again.has(str(dataset), again.fingerprint(identity, credentials))


def test_nothing_of_a_credential_is_on_the_disk(tmp_path: Path) -> None:
    proofs = Proofs(str(tmp_path))
    proofs.add(str(tmp_path), proofs.fingerprint("id", SECRET))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600
        assert not any(value.encode() in path.read_bytes() for value in SECRET.values())


def test_another_cache_directory_has_another_key_and_a_copy_the_same(tmp_path: Path) -> None:
    one, two, copy = tmp_path / "one", tmp_path / "two", tmp_path / "copy"
    one.mkdir()
    two.mkdir()
    made = Proofs(str(one)).fingerprint("id", SECRET)
    assert Proofs(str(two)).fingerprint("id", SECRET) != made
    shutil.copytree(one, copy)
    assert Proofs(str(copy)).fingerprint("id", SECRET) == made


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    proofs = Proofs(str(tmp_path))
    made = [f"{number:064x}" for number in range(40)]
    for each in made:
        proofs.add(str(tmp_path), each)
    assert [proofs.has(str(tmp_path), each) for each in made] == [False] * 24 + [True] * 16


def test_datasets_that_are_the_first_at_once_make_one_key(tmp_path: Path) -> None:
    for number in range(4):
        directory = tmp_path / str(number)
        directory.mkdir()
        proofs, together = Proofs(str(directory)), threading.Barrier(8)

        def first(name: int, proofs: Proofs = proofs, together: threading.Barrier = together) -> str:
            together.wait()
            return proofs.fingerprint(f"s3::{name}/", SECRET)

        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(first, range(8)))
        again = Proofs(str(directory))
        assert made == [again.fingerprint(f"s3::{name}/", SECRET) for name in range(8)]


def test_what_is_refused_now_is_forgotten(tmp_path: Path) -> None:
    proofs = Proofs(str(tmp_path))
    kept, refused = (proofs.fingerprint(name, SECRET) for name in ("kept", "refused"))
    for each in (kept, refused):
        proofs.add(str(tmp_path), each)
    proofs.remove(str(tmp_path), refused)
    proofs.remove(str(tmp_path), refused)
    assert [proofs.has(str(tmp_path), each) for each in (kept, refused)] == [True, False]
