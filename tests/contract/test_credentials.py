"""``dsfs dataset set-credential``: how a credential comes in, what it does, and that it is seen nowhere."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import contents_below, one_line_failure, wrong_usage
from tests.contract.guarded import FILES, Guarded, errno_of, guarded, read_all, secret, web_dataset
from tests.manifests import dataset, write_manifests
from tests.mounts import Mount, Mounts, dsfs, eventually, processes_of, runtime_dir_of
from tests.servers import hostile as web

SESSIONS = ["direct", "pyfuse3"]


@pytest.fixture
def origin() -> Iterator[Guarded]:
    with guarded() as server:
        yield server


def set_token(mount: Mount, name: str, token: str) -> None:
    done = dsfs(
        "dataset", "set-credential", name, "--stdin", f"-m{mount.mountpoint}", stdin=json.dumps({"token": token})
    )
    assert done.returncode == 0, done.stderr
    assert token not in done.stdout + done.stderr


@pytest.mark.parametrize("session", SESSIONS)
def test_a_credential_is_used_without_a_remount(mounts: Mounts, origin: Guarded, tmp_path: Path, session: str) -> None:
    """One that is missing, a right one, a wrong one, a right one again; over restarts of the server."""
    origin.allow("fake-token-a", "fake-token-b")
    how = {"readPath": "daemon"} if session == "direct" else {}
    manifest = write_manifests(tmp_path / "m.yaml", web_dataset(origin, "one", "team", secretRef="nowhere", **how))
    mount = mounts.mount("-f", manifest, session=session, dataset="team/one")
    mount.expect_log("cannot be used|listing failed|fetch failed|resync failed")
    assert "nowhere" in mount.wait_phase("FAILED")["message"]
    set_token(mount, "team/one", "fake-token-a")
    mount.wait_phase("READY")
    assert errno_of(mount.root) == 0

    set_token(mount, "team/one", "fake-token-wrong")
    for name in ("a.txt", "b.bin"):
        assert errno_of(mount.root, name) == errno.EACCES, "cached or not"
    message = eventually(lambda: mount.dataset()["message"], 10, "it says so")
    assert "403" in message
    assert "fake-token" not in message
    set_token(mount, "team/one", "fake-token-b")
    for name in FILES:
        assert errno_of(mount.root, name) == 0
    eventually(lambda: mount.dataset()["message"] == "", 10, "it is well again")

    origin.may_read.discard("fake-token-a")
    origin.may_list.discard("fake-token-a")
    mount.kill_server()
    eventually(lambda: mount.look()["healthy"], 20, "the next server answers")
    assert mount.wait_phase("READY")
    assert dsfs("dataset", "resync", "team/one", f"-m{mount.mountpoint}").returncode == 0
    assert errno_of(mount.root, "large") == 0


def test_it_wins_over_secret_ref_until_it_is_taken_back(mounts: Mounts, origin: Guarded, tmp_path: Path) -> None:
    origin.allow("fake-token-own", "fake-token-secret")
    manifest = write_manifests(
        tmp_path / "m.yaml",
        web_dataset(origin, "one", "team", share=True, readPath="daemon"),
        dataset("ref", "dataset://team/one", "other", type="REFERENCE", readPath="daemon"),
        secret("team", token="fake-token-secret"),
    )
    mount = mounts.mount("-f", manifest, dataset="team/one")
    where = f"-m{mount.mountpoint}"
    mount.wait_phase("READY", "one")
    mount.wait_phase("READY", "ref")
    set_token(mount, "team/one", "fake-token-own")
    before = len(origin.reads())
    read_all(mount.root)
    assert errno_of(mount.mountpoint / "other/ref") == 0
    assert {token for token, _count in origin.reads()[before:]} == {"fake-token-own"}
    one_line_failure(
        dsfs("dataset", "set-credential", "other/ref", "--stdin", where, stdin='{"token": "x"}'), "REFERENCE"
    )
    assert dsfs("dataset", "clone", "team/one", "two", where).returncode == 0
    origin.may_read.discard("fake-token-secret")
    assert errno_of(mount.mountpoint / "team/two") == 0, "a clone has it too"

    assert "no credential" in dsfs("dataset", "set-credential", "team/one", "--stdin", where, stdin="{}").stdout
    mount.expect_log("fetch failed")
    assert errno_of(mount.root) == errno.EACCES
    assert errno_of(mount.mountpoint / "team/two") == 0


def test_files_and_environment(mounts: Mounts, origin: Guarded, tmp_path: Path) -> None:
    """Also for a mount of a single dataset, which has no manifests to hand on."""
    origin.allow("", "Basic c29tZW9uZTpmYWtlLXBhc3N3MHJk")
    mount = mounts.mount(origin.url)
    where = f"-m{mount.mountpoint}"
    name = mount.dataset()["name"]
    (tmp_path / "user").write_text("someone\n")
    done = dsfs(
        *("dataset", "set-credential", name, "--from-file", f"username={tmp_path}/user"),
        *("--from-env", "password=PASSWORD_HERE", where, "--json"),
        env={"PASSWORD_HERE": "fake-passw0rd"},
    )
    assert json.loads(done.stdout) == {"dataset": f"default/{name}", "keys": ["password", "username"]}, done.stderr
    origin.may_read.discard("")
    origin.may_list.discard("")
    mount.kill_server()
    read_all(mount.root)


def test_a_header_that_a_site_wants_its_key_in(mounts: Mounts, tmp_path: Path) -> None:
    """The option is refused, and where that says it belongs it works; it is seen in no log."""
    fake = "fake-t0ken-66666"

    def with_key(asked: web.Asked, _data: bytes, answer: web.Answer) -> web.Answer:
        return answer if asked.headers.get("x-api-key") == fake else web.Answer(401, {}, b"")

    with web.hostile() as server:
        server.files["/f"] = b"first"
        server.always("/f", with_key)
        line = one_line_failure(dsfs("mount", f"{server.url}f", tmp_path, "--option", f"X-API-Key={fake}"), "Secret")
        assert "X-API-Key" in line
        assert fake not in line
        manifest = write_manifests(tmp_path / "m.yaml", dataset("one", f"{server.url}f", "team", type="HTTP"))
        mount = mounts.mount("-f", manifest, dataset="team/one", env={"DSFS_DEBUG": "1"})
        mount.expect_log("listing failed")
        assert "X-API-Key" in mount.wait_phase("FAILED")["message"]
        done = dsfs(
            *("dataset", "set-credential", "team/one", "--from-env", "X-API-Key=KEY_HERE", f"-m{mount.mountpoint}"),
            env={"KEY_HERE": fake},
        )
        assert done.stdout == "team/one reads with X-API-Key from now on\n", done.stderr
        mount.wait_phase("READY")
        assert (mount.root / "f").read_bytes() == b"first"
        assert fake not in mount.log() + str(mount.status())


def test_what_is_refused(mounts: Mounts, source: Path, origin: Guarded, tmp_path: Path) -> None:
    manifest = write_manifests(tmp_path / "m.yaml", dataset("one", source), dataset("web", origin.url, type="HTTP"))
    origin.allow("")
    mount = mounts.mount("-f", manifest)
    call = ("dataset", "set-credential", f"-m{mount.mountpoint}")
    (tmp_path / "large").write_bytes(b"x" * (1 << 20) + b"y")
    (tmp_path / "empty").write_bytes(b" \n")
    wrong_usage(dsfs(*call, "web"), "--from-file")
    wrong_usage(dsfs(*call, "web", "--from-file", "token"), "KEY=PATH")
    wrong_usage(dsfs(*call, "web", "--from-env", "=X"), "KEY=VARIABLE")
    one_line_failure(dsfs(*call, "web", "--from-file", f"token={tmp_path}/none"), str(tmp_path / "none"))
    one_line_failure(dsfs(*call, "web", "--from-env", "token=NOT_THERE"), "NOT_THERE")
    one_line_failure(dsfs(*call, "web", "--from-file", f"token={tmp_path}/large"), "token", "1 MiB")
    one_line_failure(dsfs(*call, "web", "--from-file", f"token={tmp_path}/empty"), "token", "empty")
    one_line_failure(dsfs(*call, "none", "--stdin", stdin='{"token": "x"}'), "none")
    one_line_failure(dsfs(*call, "one", "--stdin", stdin='{"token": "x"}'), "without a credential")
    for text in ("", "[]", "fake-token-nothing", '{"token": 1}', '{"secret-key": "fake-token-x"}', '{"../x": "y"}'):
        line = one_line_failure(dsfs(*call, "web", "--stdin", stdin=text))
        assert "fake-token" not in line
    assert (mount.mountpoint / "default/web/a.txt").read_bytes() == b"first"


def test_it_is_seen_nowhere(mounts: Mounts, origin: Guarded, tmp_path: Path) -> None:
    """Used, refused, replaced, over a restart, with the log at its most talkative."""
    fake = "fake-t0ken-55555"
    origin.may_list.add(fake)
    manifest = write_manifests(tmp_path / "m.yaml", dataset("one", origin.url, "team", type="HTTP"))
    mount = mounts.mount("-f", manifest, dataset="team/one", env={"DSFS_DEBUG": "1"})
    mount.expect_log("cannot be used|listing failed|fetch failed|resync failed")
    mount.wait_phase("FAILED")
    set_token(mount, "team/one", fake)
    mount.wait_phase("READY")
    assert errno_of(mount.root) == errno.EACCES
    origin.may_read.add(fake)
    assert errno_of(mount.root) == 0
    assert dsfs("restart", mount.mountpoint).returncode == 0
    read_all(mount.root)
    assert dsfs("dataset", "clone", "team/one", "two", f"-m{mount.mountpoint}").returncode == 0
    eventually(lambda: list(mount.cache_dir.rglob("proofs")), 10, "it is written down that it reads")

    where = f"-m{mount.mountpoint}"
    shown = {"status": str(mount.status()), "log": mount.log(), "metrics": str(mount.metrics())}
    for verb in (("dataset", "show", "team/one"), ("dataset", "list"), ("status",)):
        for flag in ((), ("--json",)):
            place = (str(mount.mountpoint),) if verb == ("status",) else (where,)
            done = dsfs(*verb, *place, *flag)
            shown[" ".join(verb + flag)] = done.stdout + done.stderr
    for name in os.listdir("/proc"):
        for what in ("cmdline", "comm"):
            try:
                shown[f"{name} {what}"] = Path(f"/proc/{name}/{what}").read_text(errors="replace")
            except OSError:
                continue
    for pid in processes_of([runtime_dir_of(mount.mountpoint)]):
        shown[f"environ of {pid}"] = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    for path, data in contents_below(mount.cache_dir, Path("/run/dsfs")):
        shown[str(path)] = data.decode("latin-1")
    assert not [name for name, text in shown.items() if fake in text]
    assert len(shown) > 50


def test_who_comes_to_a_secret_late_goes_through_the_shared_cache_too(
    mounts: Mounts, origin: Guarded, tmp_path: Path
) -> None:
    origin.allow("fake-token-late")
    secrets, shared = tmp_path / "secrets", tmp_path / "shared"
    (secrets / "team").mkdir(parents=True)
    manifest = write_manifests(tmp_path / "m.yaml", web_dataset(origin, "one", "team", readPath="daemon"))
    mount = mounts.mount("-f", manifest, f"--secrets={secrets}", f"--shared-cache={shared}", dataset="team/one")
    mount.expect_log("cannot be used|listing failed")
    mount.wait_phase("FAILED")
    (secrets / "team/web").mkdir()
    (secrets / "team/web/token").write_text("fake-token-late")
    mount.wait_phase("READY")
    read_all(mount.root)
    eventually(lambda: [path for path in shared.glob("private/team/**/*") if path.is_file()], 10, "it is shared")


def test_a_secret_that_is_deleted_makes_its_dataset_failed_until_it_is_there_again(
    mounts: Mounts, origin: Guarded, tmp_path: Path
) -> None:
    """What is promised is "a secretRef that is missing makes that dataset FAILED with its message": of what is cached
    too, and for the next server."""
    origin.allow("fake-token-here")
    token = tmp_path / "secrets/team/web/token"
    token.parent.mkdir(parents=True)
    token.write_text("fake-token-here")
    manifest = write_manifests(tmp_path / "m.yaml", web_dataset(origin, "one", "team", readPath="daemon"))
    mount = mounts.mount("-f", manifest, f"--secrets={tmp_path}/secrets", dataset="team/one")
    mount.expect_log("cannot be used|fetch failed")
    mount.wait_phase("READY")
    read_all(mount.root)
    token.unlink()
    token.parent.rmdir()
    assert "secretRef 'web' is not there" in mount.wait_phase("FAILED")["message"]
    assert sorted(os.listdir(mount.root)) == sorted(FILES)
    assert errno_of(mount.root) == errno.EIO
    assert dsfs("restart", mount.mountpoint).returncode == 0
    assert "secretRef 'web' is not there" in mount.wait_phase("FAILED")["message"]
    assert sorted(os.listdir(mount.root)) == sorted(FILES)
    assert errno_of(mount.root) == errno.EIO
    token.parent.mkdir()
    token.write_text("fake-token-here")
    mount.wait_phase("READY")
    read_all(mount.root)
    assert mount.sum_of("dsfs_origin_read_bytes_total") <= len(FILES), "a byte proves it, and the rest is here"
    eventually(lambda: mount.dataset()["message"] == "", 10, "it is well again")
