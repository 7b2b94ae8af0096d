"""The next revision, datasets that come and go, older revisions by name, credentials that change: all while mounted."""

from __future__ import annotations

import errno
import json
import mmap
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.manifests import dataset, write_manifests
from tests.mounts import Mount, Mounts, dsfs, eventually
from tests.servers import hostile as web
from tests.servers.git_server import Repository

SESSIONS = ("direct", "pyfuse3")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    (directory / "sub").mkdir(parents=True)
    (directory / "same").write_bytes(b"stays as it is")
    (directory / "changes").write_bytes(b"old")
    (directory / "sub/goes").write_bytes(b"still here")
    return directory


def change(source: Path) -> None:
    (source / "changes").write_bytes(b"new and longer")
    (source / "sub/goes").unlink()
    (source / "sub/comes").write_bytes(b"just come")


def read_or_errno(fd: int, offset: int) -> bytes | int | None:
    try:
        return os.pread(fd, 4, offset)
    except OSError as error:
        return error.errno


def verb(mount: Mount, *argv: str | Path) -> str:
    done = dsfs(*argv, "-m", mount.mountpoint)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("session", SESSIONS)
def test_a_resync_shows_the_next_revision_at_once(mounts: Mounts, source: Path, session: str) -> None:
    mount = mounts.mount(source, session=session)
    root = mount.root
    first = mount.wait_phase("READY")["revision"]
    before = {name: os.stat(root / name).st_ino for name in ("same", "changes", "sub")}
    assert (root / "sub/goes").read_bytes() == b"still here"
    assert not (root / "sub/comes").exists()
    with open(root / "changes", "rb") as held:
        assert held.read() == b"old"
        change(source)
        revision = json.loads(verb(mount, "dataset", "resync", "source", "--json"))["revision"]
        assert revision != first
        assert mount.dataset()["revision"] == revision
        assert (root / "changes").read_bytes() == b"new and longer"
        assert sorted(os.listdir(root / "sub")) == ["comes"]
        assert (root / "sub/comes").read_bytes() == b"just come"
        with pytest.raises(FileNotFoundError):
            (root / "sub/goes").read_bytes()
        after = {name: os.stat(root / name).st_ino for name in before}
        assert after["same"] == before["same"]
        assert after["sub"] == before["sub"]
        assert after["changes"] != before["changes"]
        held.seek(0)
        assert held.read() == b"old", "an open file goes on reading the revision that it was opened in"


def test_what_is_shown_counts_alone_and_has_the_quota(mounts: Mounts, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    names = [f"f{number}" for number in range(5)]

    def write(*which: str) -> None:
        for name in which:
            (source / name).write_bytes(os.urandom(200_000))

    def read() -> None:
        for name in names:
            assert (mount.root / name).read_bytes() == (source / name).read_bytes()

    def cached() -> int:
        size: int = mount.dataset()["cached_bytes"]
        return size

    write(*names)
    manifest = write_manifests(tmp_path / "m.yaml", dataset("data", source, cache={"quota": "1300KiB"}))
    mount = mounts.mount("-f", manifest, dataset="default/data")
    mount.wait_phase("READY")
    read()
    eventually(lambda: cached() == 1_000_000, 10, "all is cached")
    write("f0", "f1")
    verb(mount, "dataset", "resync", "data")
    eventually(lambda: cached() == 600_000, 10, "what has changed is not")
    read()
    eventually(lambda: cached() == 1_000_000, 10, "and is again")
    write(*names)
    verb(mount, "dataset", "resync", "data")
    eventually(lambda: cached() == 0, 10, "nothing of it is cached")
    read()
    eventually(lambda: cached() == 1_000_000, 10, "its quota is there for it")
    mount.kill_server()
    eventually(lambda: mount.look()["healthy"], 20, "the next server answers")
    assert cached() == 1_000_000


def test_what_changed_while_it_was_not_mounted_counts_no_more(mounts: Mounts, tmp_path: Path) -> None:
    """Nor does what another dataset had, which was called the same."""
    source, other = tmp_path / "source", tmp_path / "other"
    for directory, size in ((source, 200_000), (other, 100_000)):
        directory.mkdir()
        for number in range(3):
            (directory / f"f{number}").write_bytes(os.urandom(size))
    manifest = write_manifests(tmp_path / "m.yaml", dataset("data", source, cache={"quota": "900KiB"}))
    first = mounts.mount("-f", manifest, dataset="default/data")
    first.wait_phase("READY")
    verb(first, "warm", "data")
    assert first.dataset()["cached_bytes"] == 600_000
    assert first.unmount().returncode == 0
    for name in ("f0", "f1"):
        (source / name).write_bytes(os.urandom(200_000))
    mount = mounts.mount("-f", manifest, cache_dir=first.cache_dir, dataset="default/data")
    mount.wait_phase("READY")
    eventually(lambda: mount.dataset()["cached_bytes"] == 200_000, 10, "what is shown counts alone")
    verb(mount, "warm", "data")
    assert mount.dataset()["cached_bytes"] == 600_000
    changed = write_manifests(tmp_path / "other.yaml", dataset("data", other, cache={"quota": "900KiB"}))
    verb(mount, "dataset", "delete", "data")
    verb(mount, "dataset", "apply", "-f", changed)
    eventually(lambda: mount.dataset()["bytes"] == 300_000, 10, "another source is shown")
    eventually(lambda: mount.dataset()["cached_bytes"] == 0, 10, "of which nothing is cached")
    verb(mount, "warm", "data")
    assert mount.dataset()["cached_bytes"] == mount.sum_of("dsfs_dataset_cached_bytes", dataset="data") == 300_000


def test_evict_gives_back_what_older_revisions_have_left(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source)
    mount.wait_phase("READY")
    for name in ("changes", "same"):
        (mount.root / name).read_bytes()
    change(source)
    verb(mount, "dataset", "resync", "source")
    assert (mount.root / "changes").read_bytes() == b"new and longer"
    before = mount.sum_of("dsfs_cache_evicted_bytes_total")
    freed = json.loads(verb(mount, "evict", "source", "--json"))["evicted_bytes"]
    assert not [path for path in (mount.cache_dir / "objects").rglob("*") if path.is_file()]
    assert mount.dataset()["cached_bytes"] == 0
    assert mount.sum_of("dsfs_cache_evicted_bytes_total") - before == freed > 0
    assert (mount.root / "same").read_bytes() == b"stays as it is"


def test_a_resync_without_changes_changes_nothing(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source)
    first = mount.wait_phase("READY")["revision"]
    verb(mount, "dataset", "resync", "source")
    assert mount.dataset()["revision"] == first


def test_a_commit_that_changes_nothing_is_shown_all_the_same(mounts: Mounts, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repo.git", filters=False)
    first = repository.commit({"data/a": b"one", "code": b"x"})
    uri = f"git+file://{repository.path}"
    manifest = write_manifests(tmp_path / "m.yaml", dataset("data", uri, type="GIT"))
    mount = mounts.mount("-f", manifest, dataset="default/data")
    assert mount.wait_phase("READY")["revision"] == first
    with open(mount.root / "data/a", "rb") as held:
        numbers = os.fstat(held.fileno()).st_ino
        second = repository.commit({"data/a": b"two"})
        verb(mount, "dataset", "resync", "data")
        assert mount.dataset()["revision"] == second
        third = repository.commit({})
        assert third != second
        inode = os.stat(mount.root / "data/a").st_ino
        verb(mount, "dataset", "resync", "data")
        assert mount.dataset()["revision"] == third
        assert os.stat(mount.root / "data/a").st_ino == inode != numbers
        assert held.read() == b"one"
    assert (mount.mountpoint / f"default/data@{third}/data/a").read_bytes() == b"two"


def test_a_mapping_lives_through_resyncs_and_a_crash(mounts: Mounts, source: Path) -> None:
    data = os.urandom(3 << 20)
    (source / "mapped").write_bytes(data)
    mount = mounts.mount(source)
    mount.wait_phase("READY")
    with open(mount.root / "mapped", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        assert mapped[:10] == data[:10]
        for round_ in range(3):
            (source / "changes").write_bytes(b"round %d" % round_)
            verb(mount, "dataset", "resync", "source")
            assert (mount.root / "changes").read_bytes() == b"round %d" % round_
        mount.kill_server()
        assert mapped[:] == data
        assert (mount.root / "changes").read_bytes() == b"round 2"
        assert (mount.root / "sub/goes").read_bytes() == b"still here"
        mapped.close()


def test_a_resync_that_fails_keeps_what_is_shown(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source)
    mount.wait_phase("READY")
    assert (mount.root / "same").read_bytes() == b"stays as it is"
    mount.expect_log("resync failed")
    source.rename(source.with_name("away"))
    done = dsfs("dataset", "resync", "source", "-m", mount.mountpoint)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert mount.dataset()["phase"] == "READY"
    assert "resync failed" in mount.dataset()["message"]
    assert (mount.root / "same").read_bytes() == b"stays as it is"
    source.with_name("away").rename(source)
    verb(mount, "dataset", "resync", "source")
    assert mount.dataset()["message"] == ""


def test_a_resync_that_fails_is_seen_by_prometheus(mounts: Mounts, source: Path) -> None:
    listed, failures = "dsfs_dataset_listed_timestamp_seconds", "dsfs_dataset_resync_failures"
    began_s = time.time()
    mount = mounts.mount(source)
    mount.wait_phase("READY")
    first_s = mount.sum_of(listed)
    assert began_s - 1 < first_s < time.time() + 1
    assert mount.sum_of(failures) == 0
    mount.expect_log("resync failed")
    away = source.rename(source.with_name("away"))
    assert dsfs("dataset", "resync", "source", "-m", mount.mountpoint).returncode == 1
    assert mount.sum_of(failures) >= 1
    assert mount.sum_of("dsfs_dataset_info", phase="READY") == 1
    assert mount.sum_of(listed) == first_s
    mount.kill_server()
    assert mount.server_pid
    assert abs(mount.sum_of(listed) - first_s) < 1, "the next server knows it too"
    away.rename(source)
    verb(mount, "dataset", "resync", "source")
    assert mount.sum_of(failures) == 0
    assert mount.sum_of(listed) > first_s


@pytest.mark.parametrize("session", SESSIONS)
def test_an_older_revision_is_read_by_its_name(mounts: Mounts, source: Path, session: str, tmp_path: Path) -> None:
    manifest = write_manifests(tmp_path / "m.yaml", dataset("data", source, "team"))
    mount = mounts.mount("-f", manifest, session=session, dataset="team/data")
    first = mount.wait_phase("READY")["revision"]
    assert (mount.root / "changes").read_bytes() == b"old"
    assert (mount.root / "sub/goes").read_bytes() == b"still here"
    change(source)
    verb(mount, "dataset", "resync", "team/data")
    older = mount.mountpoint / f"team/data@{first}"
    assert os.listdir(mount.mountpoint / "team") == ["data"], "it is not listed"
    assert (older / "changes").read_bytes() == b"old"
    assert sorted(os.listdir(older / "sub")) == ["goes"]
    assert (older / "sub/goes").read_bytes() == b"still here"
    assert not (mount.mountpoint / "team/data@20000101T000000.000Z").exists()
    assert (mount.root / "changes").read_bytes() == b"new and longer"
    if session == "direct":
        with open(older / "changes", "rb") as held:
            mount.kill_server()
            assert held.read() == b"old"
        assert (older / "sub/goes").read_bytes() == b"still here"
        assert (mount.root / "sub/comes").read_bytes() == b"just come"


@pytest.mark.parametrize("session", SESSIONS)
def test_an_older_revision_goes_with_its_dataset(mounts: Mounts, source: Path, session: str, tmp_path: Path) -> None:
    manifest = write_manifests(tmp_path / "m.yaml", dataset("data", source, "team"), dataset("other", source, "team"))
    mount = mounts.mount("-f", manifest, session=session, dataset="team/data")
    older = mount.mountpoint / f"team/data@{mount.wait_phase('READY', 'data')['revision']}"
    assert (mount.root / "changes").read_bytes() == b"old"
    assert (mount.root / "sub/goes").read_bytes() == b"still here"
    change(source)
    verb(mount, "dataset", "resync", "team/data")
    assert (older / "changes").read_bytes() == b"old"
    with open(older / "sub/goes", "rb", buffering=0) as held:
        verb(mount, "dataset", "delete", "team/data")
        assert not older.exists()
        assert read_or_errno(held.fileno(), 0) in (errno.ESTALE, b"stil")  # what the kernel holds of an open file
    with pytest.raises(OSError, match=r"No such file|Stale"):
        (older / "same").read_bytes()
    verb(mount, "dataset", "apply", "-f", manifest)
    eventually(lambda: (mount.root / "sub/comes").exists(), 20, "it is there again")


@pytest.mark.parametrize("session", SESSIONS)
def test_more_changes_than_are_held_in_memory_are_shown_at_once(mounts: Mounts, tmp_path: Path, session: str) -> None:
    source = tmp_path / "many"
    (source / "sub").mkdir(parents=True)
    paths = [source / f"{directory}f{number}" for number in range(5_200) for directory in ("", "sub/")]
    for path in paths:
        path.write_bytes(b"old")
    mount = mounts.mount(source, session=session)
    mount.wait_phase("READY")
    root = mount.root
    for directory in (root, root / "sub"):
        assert (directory / "f1").read_bytes() == b"old"
        assert (directory / "f2").stat().st_size == 3
        assert not (directory / "new").exists()
        assert len([name for name in os.listdir(directory) if name.startswith("f")]) == 5_200
    for path in paths:
        path.write_bytes(b"newer")
    for directory in (source, source / "sub"):
        (directory / "f2").unlink()
        (directory / "new").write_bytes(b"x")
    verb(mount, "dataset", "resync", "many")
    for directory in (root, root / "sub"):
        assert (directory / "f1").read_bytes() == b"newer"
        assert (directory / "new").read_bytes() == b"x"
        assert not (directory / "f2").exists()
        names = os.listdir(directory)
        assert "new" in names
        assert "f2" not in names


@pytest.mark.parametrize("session", SESSIONS)
def test_datasets_come_and_go(mounts: Mounts, source: Path, session: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_bytes(b"of the other")
    manifest = write_manifests(tmp_path / "m.yaml", dataset("one", source, "team"), dataset("two", source, "team"))
    mount = mounts.mount("-f", manifest, session=session, dataset="team/one")
    mount.wait_phase("READY", "one")
    assert sorted(os.listdir(mount.mountpoint)) == ["team"]
    applied = write_manifests(tmp_path / "n.yaml", dataset("late", other, "elsewhere"), dataset("three", other, "team"))
    assert "elsewhere/late added" in verb(mount, "dataset", "apply", "-f", applied)
    assert sorted(os.listdir(mount.mountpoint)) == ["elsewhere", "team"]
    assert sorted(os.listdir(mount.mountpoint / "team")) == ["one", "three", "two"]
    assert (mount.mountpoint / "elsewhere/late/file").read_bytes() == b"of the other"
    with open(mount.mountpoint / "team/three/file", "rb") as held:
        verb(mount, "dataset", "delete", "team/two")
        assert sorted(os.listdir(mount.mountpoint / "team")) == ["one", "three"]
        assert held.read() == b"of the other"
    assert (mount.root / "same").read_bytes() == b"stays as it is", "its neighbours' mounts stay"
    mount.kill_server()
    assert mount.server_pid, "the next server shows what was applied"
    assert sorted(os.listdir(mount.mountpoint / "team")) == ["one", "three"]
    assert sorted(each["name"] for each in mount.status()["datasets"]) == ["late", "one", "three"]


def test_another_round_in_an_applied_manifest_asks_for_a_resync(mounts: Mounts, source: Path, tmp_path: Path) -> None:
    manifest = write_manifests(tmp_path / "m.yaml", dataset("data", source))
    mount = mounts.mount("-f", manifest, dataset="default/data")
    mount.wait_phase("READY")
    assert (mount.root / "changes").read_bytes() == b"old"
    change(source)
    again = write_manifests(tmp_path / "n.yaml", dataset("data", source, dataSyncRound=2))
    assert "default/data resyncs" in verb(mount, "dataset", "apply", "-f", again)
    eventually(lambda: (mount.root / "changes").read_bytes() == b"new and longer", 10, "the next revision is shown")
    assert (mount.root / "sub/comes").exists()


def test_a_manifest_that_is_wrong_changes_nothing(mounts: Mounts, source: Path, tmp_path: Path) -> None:
    manifest = write_manifests(tmp_path / "m.yaml", dataset("data", source))
    mount = mounts.mount("-f", manifest, dataset="default/data")
    wrong = write_manifests(tmp_path / "n.yaml", dataset("late", source), {"kind": "Pod"})
    done = dsfs("dataset", "apply", "-f", wrong, "-m", mount.mountpoint)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert [each["name"] for each in mount.status()["datasets"]] == ["data"]


def test_a_source_that_comes_back_is_listed_without_being_asked(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source)
    mount.wait_phase("READY")
    mount.expect_log("resync failed")
    away = source.rename(source.with_name("away"))
    assert dsfs("dataset", "resync", "source", "-m", mount.mountpoint).returncode == 1
    assert "resync failed" in mount.dataset()["message"]
    change(away)
    away.rename(source)
    eventually(lambda: os.listdir(mount.root / "sub") == ["comes"], 20, "it is listed again")
    assert (mount.root / "changes").read_bytes() == b"new and longer"
    eventually(lambda: mount.dataset()["message"] == "", 10, "and said to be well")


def test_json_is_applied_as_it_is_mounted(mounts: Mounts, source: Path, tmp_path: Path) -> None:
    first, second = (json.dumps(dataset(name, source), indent="\t") for name in ("first", "second"))
    (tmp_path / "m.json").write_text(first)
    (tmp_path / "n.json").write_text(second)
    mount = mounts.mount("-f", tmp_path / "m.json")
    argv = ("dataset", "apply", "-f", tmp_path / "m.json", "-f", tmp_path / "n.json")
    assert verb(mount, *map(str, argv)) == "default/first unchanged\ndefault/second added\n"


def test_a_reference_shows_another_dataset_and_shares_its_cache(mounts: Mounts, source: Path, tmp_path: Path) -> None:
    manifest = write_manifests(
        tmp_path / "m.yaml",
        dataset("data", source, "owner", share=True),
        dataset("private", source, "owner"),
        dataset("all", "dataset://owner/data", "team", type="REFERENCE"),
        dataset("part", "dataset://owner/data/sub", "team", type="REFERENCE"),
        dataset("denied", "dataset://owner/private", "team", type="REFERENCE"),
    )
    mount = mounts.mount("-f", manifest, dataset="team/all")
    mount.expect_log("dataset cannot be used|listing failed")
    for name in ("data", "all", "part"):
        mount.wait_phase("READY", name)
    assert (mount.mountpoint / "owner/data/sub/goes").read_bytes() == b"still here"
    fetched = mount.sum_of("dsfs_origin_read_bytes_total")
    eventually(lambda: list(mount.cache_dir.rglob("proofs")), 10, "that its credentials may read is written down")
    assert (mount.root / "sub/goes").read_bytes() == b"still here"
    assert (mount.mountpoint / "team/part/goes").read_bytes() == b"still here"
    assert mount.sum_of("dsfs_origin_read_bytes_total") == fetched, "its bytes are here already"
    denied = mount.wait_phase("FAILED", "denied")
    assert "not shared" in denied["message"]


def test_a_file_that_is_put_into_a_manual_dataset_is_seen(mounts: Mounts, tmp_path: Path) -> None:
    claim = tmp_path / "claims/hand"
    claim.mkdir(parents=True)
    (claim / "first").write_bytes(b"1")
    manifest = write_manifests(tmp_path / "m.yaml", dataset("hand", "manual://", type="MANUAL", syncInterval="500ms"))
    mount = mounts.mount("-f", manifest, "--pvc-root", tmp_path / "claims", dataset="default/hand")
    mount.wait_phase("READY")
    assert os.listdir(mount.root) == ["first"]
    (claim / "second").write_bytes(b"2")
    eventually(lambda: sorted(os.listdir(mount.root)) == ["first", "second"], 10, "it is seen")
    assert (mount.root / "second").read_bytes() == b"2"


@pytest.mark.parametrize("session", ["direct", "pyfuse3"])
def test_a_reference_follows_what_it_refers_to(mounts: Mounts, tmp_path: Path, session: str) -> None:
    claim = tmp_path / "claims/hand"
    claim.mkdir(parents=True)
    (claim / "first").write_bytes(b"1")
    manifest = write_manifests(
        tmp_path / "m.yaml",
        dataset("hand", "manual://", "owner", type="MANUAL", syncInterval="500ms", share=True),
        dataset("lent", "dataset://owner/hand", "team", type="REFERENCE"),
        dataset("again", "dataset://team/lent", "third", type="REFERENCE"),
    )
    claims = tmp_path / "claims"
    (claims / "owner").mkdir()
    claim.rename(claims / "owner/hand")
    claim = claims / "owner/hand"
    mount = mounts.mount("-f", manifest, "--pvc-root", claims, session=session)
    mount.expect_log("dataset cannot be used|listing failed")
    lent = mount.mountpoint / "team/lent"
    assert os.listdir(lent) == ["first"]
    (claim / "second").write_bytes(b"2")
    eventually(lambda: sorted(os.listdir(lent)) == ["first", "second"], 20, "it is seen through the reference")
    assert (lent / "second").read_bytes() == b"2"


def test_a_rotated_secret_is_used_without_a_remount(mounts: Mounts, tmp_path: Path) -> None:
    secret = tmp_path / "secrets/default/login"
    secret.mkdir(parents=True)
    (secret / "token").write_text("made-up-1")
    accepted = ["made-up-1"]

    def only_with_token(asked: web.Asked, _data: bytes, answer: web.Answer) -> web.Answer:
        right = asked.headers.get("authorization") == f"Bearer {accepted[0]}"
        if not right:
            return replace(answer, status=403, body=b"", headers={})
        return answer.with_headers(Content_Type="text/html") if asked.path.endswith("/") else answer

    with web.hostile() as server:
        server.files["/data/first"] = b"first file"
        server.files["/data/second"] = b"second file"
        server.files["/data/"] = b'<html><a href="first">first</a> <a href="second">second</a></html>'
        for path in server.files:
            server.always(path, only_with_token)
        manifest = write_manifests(
            tmp_path / "m.yaml", dataset("data", f"{server.url}data/", type="HTTP", secretRef="login")
        )
        mount = mounts.mount("-f", manifest, "--secrets", tmp_path / "secrets", dataset="default/data")
        mount.wait_phase("READY")
        assert (mount.root / "first").read_bytes() == b"first file"
        accepted[0] = "made-up-2"
        (secret / "token").write_text("made-up-2")
        assert (mount.root / "second").read_bytes() == b"second file"


@pytest.mark.parametrize("session", SESSIONS)
def test_a_dataset_that_is_shown_anew_mixes_nothing_with_what_was_open(
    mounts: Mounts, tmp_path: Path, session: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "b"):
        (source / name).write_bytes(name.encode() * 9_000_000)
    spec = {"readPath": "passthrough"} if session == "direct" else {}
    manifest = write_manifests(tmp_path / "m.yaml", dataset("data", source, **spec))
    mount = mounts.mount("-f", manifest, session=session, dataset="default/data")
    mount.wait_phase("READY")
    for name in ("a", "b"):
        assert (mount.root / name).read_bytes()[-1:] == name.encode()
    with open(mount.root / "a", "rb", buffering=0) as held:
        assert held.read(4) == b"aaaa"
        other = write_manifests(tmp_path / "n.yaml", dataset("data", source, mountOptions={"mode": "0500"}, **spec))
        assert "default/data changed" in verb(mount, "dataset", "apply", "-f", other)
        for _again in range(2):
            assert (mount.root / "b").read_bytes() == b"b" * 9_000_000
            assert (mount.root / "a").read_bytes() == b"a" * 9_000_000
        assert read_or_errno(held.fileno(), 7 << 20) in (b"aaaa", errno.ESTALE), "the file that was open, or an error"


def test_what_is_not_shared_any_more_is_not_seen_any_more(mounts: Mounts, source: Path, tmp_path: Path) -> None:
    def manifests(name: str, *, share: bool) -> Path:
        return write_manifests(
            tmp_path / name,
            dataset("theirs", source, "owner", share=share),
            dataset("ours", "dataset://owner/theirs", "team", type="REFERENCE"),
        )

    mount = mounts.mount("-f", manifests("m.yaml", share=True), "--namespace", "team", dataset="team/ours")
    mount.expect_log("dataset cannot be used|listing failed")
    mount.wait_phase("READY", "ours")
    assert (mount.mountpoint / "owner/theirs/same").read_bytes() == b"stays as it is"
    assert (mount.root / "same").read_bytes() == b"stays as it is"
    revision = mount.dataset("ours")["revision"]
    older = mount.mountpoint / f"team/ours@{revision}"
    assert "same" in os.listdir(older)
    verb(mount, "dataset", "apply", "-f", manifests("n.yaml", share=False))
    assert not (mount.mountpoint / "owner/theirs").exists()
    mount.wait_phase("FAILED", "ours")
    with pytest.raises(OSError, match="Input/output"):
        os.listdir(mount.root)
    assert not older.exists()
    mount.kill_server()
    mount.wait_phase("FAILED", "ours")
    assert not older.exists()


@pytest.mark.parametrize("what", ["delete", "resync"])
def test_a_path_is_no_dataset(mounts: Mounts, source: Path, tmp_path: Path, what: str) -> None:
    manifest = write_manifests(tmp_path / "m.yaml", dataset("data", source))
    mount = mounts.mount("-f", manifest, dataset="default/data")
    done = dsfs("dataset", what, "default/data/sub", "-m", mount.mountpoint)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "names a path" in done.stderr
    assert (mount.root / "same").read_bytes() == b"stays as it is"


def test_restart_has_another_server_take_over(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source)
    mount.wait_phase("READY")
    with open(mount.root / "same", "rb", buffering=0) as held:
        before = mount.server_pid
        done = dsfs("restart", mount.mountpoint)
        assert done.returncode == 0, done.stderr
        assert mount.server_pid != before
        assert held.read() == b"stays as it is"
    assert (mount.root / "sub/goes").read_bytes() == b"still here"


def test_a_listing_that_is_read_while_the_revision_is_swapped_comes_to_its_end(mounts: Mounts, tmp_path: Path) -> None:
    source = tmp_path / "many"
    source.mkdir()
    for number in range(3_000):
        (source / f"{number:05}{'x' * 100}").write_bytes(b"old")
    mount = mounts.mount(source)
    mount.wait_phase("READY")
    with os.scandir(mount.root) as entries:
        names = [next(entries).name for _ in range(10)]
        for file in source.iterdir():
            file.write_bytes(b"changed")
        verb(mount, "dataset", "resync", "many")
        names += [entry.name for entry in entries]
    assert sorted(names) == sorted(os.listdir(source))
