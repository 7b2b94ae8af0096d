"""Many datasets of several namespaces in one mount: who is shown, who may read, and that one cannot hurt another."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import contents_below
from tests.manifests import dataset, write_manifests
from tests.mounts import HOST, Mount, Mounts, dsfs, eventually, runtime_dir_of
from tests.pages import drop_pages
from tests.servers import hostile as web
from tests.servers.process import free_ports

SESSIONS = ("direct", "pyfuse3")
NOBODY = 65534


def names_in(mount: Mount) -> set[str]:
    return {f"{ns}/{name}" for ns in os.listdir(mount.mountpoint) for name in os.listdir(mount.mountpoint / ns)}


@pytest.mark.parametrize("session", SESSIONS)
def test_files_directories_and_several_documents(mounts: Mounts, source: Path, tmp_path: Path, session: str) -> None:
    folder = tmp_path / "folder"
    write_manifests(folder / "1.yaml", dataset("a", source, "red"), dataset("b", source, "red"))
    write_manifests(folder / "2.json", dataset("a", source, "blue"))
    (folder / "README.md").write_text("not a manifest")
    single = write_manifests(tmp_path / "single.yaml", dataset("c", source))
    mount = mounts.mount("-f", folder, "-f", single, session=session)
    wanted = {"red/a", "red/b", "blue/a", "default/c"}
    assert names_in(mount) == wanted
    for name in wanted:
        assert (mount.mountpoint / name / "a.txt").read_bytes() == b"first"
        assert sorted(os.listdir(mount.mountpoint / name)) == ["a.txt", "sub"]
    for absent in ("green", "red/c", "red/b/none"):
        assert not (mount.mountpoint / absent).exists()
    with pytest.raises(OSError, match="Read-only file system"):
        (mount.mountpoint / "green").mkdir()


@pytest.mark.parametrize("session", SESSIONS)
def test_one_that_cannot_be_reached_does_not_stop_the_others(
    mounts: Mounts, source: Path, tmp_path: Path, session: str
) -> None:
    gone = f"http://{HOST}:{free_ports(1)[0]}/"
    manifest = write_manifests(
        tmp_path / "m.yaml",
        dataset("good", source),
        dataset("gone", gone, type="HTTP"),
        dataset("no-directory", tmp_path / "none"),
        dataset("no-secret", source, secretRef="nowhere"),
        dataset("not-read", "conda://env", type="CONDA"),
    )
    mount = mounts.mount("-f", manifest, "--read-timeout=2s", session=session)
    mount.expect_log("listing failed|dataset cannot be used")
    assert mount.mount_seconds < 60
    root = mount.mountpoint / "default"
    assert (root / "good/a.txt").read_bytes() == b"first"
    words = {
        "gone": gone.rstrip("/"),
        "no-directory": str(tmp_path / "none"),
        "no-secret": "nowhere",
        "not-read": "CONDA",
    }
    for name, word in words.items():
        found = mount.wait_phase("FAILED", name)
        assert word in found["message"], found
        assert "\n" not in found["message"]
        with pytest.raises(OSError) as raised:  # noqa: PT011  # the errno is looked at
            os.listdir(root / name)
        assert raised.value.errno != 2, 'not reachable is never "not there"'
        with pytest.raises(OSError) as raised:  # noqa: PT011
            os.stat(root / name / "x")
        assert raised.value.errno != 2
    assert mount.dataset("good")["phase"] == "READY"
    assert mount.status()["healthy"] is True


@pytest.mark.parametrize("session", SESSIONS)
def test_namespace_hides(mounts: Mounts, source: Path, tmp_path: Path, session: str) -> None:
    selector = {"matchLabels": {"kubernetes.io/metadata.name": "blue"}}
    manifest = write_manifests(
        tmp_path / "m.yaml",
        dataset("own", source, "red"),
        dataset("private", source, "blue"),
        dataset("shared", source, "blue", share=True),
        dataset("for-blue", source, "green", share=True, shareToNamespaceSelector=selector),
    )
    seen = {
        ("red",): {"red/own", "blue/shared"},
        ("blue",): {"blue/private", "blue/shared", "green/for-blue"},
        ("red", "blue"): {"red/own", "blue/private", "blue/shared", "green/for-blue"},
        ("none",): {"blue/shared"},
    }
    for namespaces, wanted in seen.items():
        mount = mounts.mount("-f", manifest, *(f"--namespace={name}" for name in namespaces), session=session)
        assert names_in(mount) == wanted
        assert {f"{each['namespace']}/{each['name']}" for each in mount.status()["datasets"]} == wanted
        assert not (mount.mountpoint / "blue/private").exists() or "blue/private" in wanted
        assert mount.unmount().returncode == 0


_AS_ANOTHER = """
import os, sys
for path in sys.argv[1:]:
    try:
        if os.path.isdir(path):
            os.listdir(path)
        else:
            with open(path, "rb") as file:
                file.read()
        print("ok")
    except OSError as error:
        print(error.errno)
"""


def as_another(uid: int, root: Path, *paths: str) -> list[str]:
    """What another user gets; from inside, as directories above may be closed to that user."""
    argv = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", sys.executable, "-c", _AS_ANOTHER, *paths]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("session", SESSIONS)
def test_owner_and_mode_are_enforced(mounts: Mounts, source: Path, tmp_path: Path, session: str) -> None:
    def owned(name: str, mode: str, uid: int = 1000) -> dict[str, object]:
        return dataset(name, source, mountOptions={"uid": uid, "gid": 1000, "mode": mode})

    manifest = write_manifests(
        tmp_path / "m.yaml", owned("open", "0755"), owned("closed", "0700"), owned("theirs", "0740", NOBODY)
    )
    mount = mounts.mount("-f", manifest, session=session)
    root = mount.mountpoint / "default"
    for name, mode, directory_mode in (("open", 0o555, 0o555), ("closed", 0o500, 0o500), ("theirs", 0o540, 0o550)):
        found = os.stat(root / name / "sub/b.bin")
        assert stat.S_IMODE(found.st_mode) == mode
        assert (found.st_uid, found.st_gid) == (NOBODY if name == "theirs" else 1000, 1000)
        for directory in (root / name, root / name / "sub"):
            found = os.stat(directory)
            assert stat.S_IMODE(found.st_mode) == directory_mode, directory
            assert found.st_uid == (NOBODY if name == "theirs" else 1000)
    paths = [f"{name}/{path}" for name in ("open", "closed", "theirs") for path in (".", "a.txt", "sub", "sub/b.bin")]
    answers = dict(zip(paths, as_another(NOBODY, root, *paths), strict=True))
    for path, answer in answers.items():
        assert answer == ("13" if path.startswith("closed") else "ok"), (path, answer)
    assert (root / "closed/a.txt").read_bytes() == b"first"  # root


def test_owner_is_who_mounted(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source)
    found = os.stat(mount.root / "a.txt")
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o555, os.getuid(), os.getgid())


@pytest.mark.parametrize("session", SESSIONS)
def test_the_control_socket_and_the_cache_are_the_users_alone(mounts: Mounts, source: Path, session: str) -> None:
    mount = mounts.mount(source, session=session)
    for path in (mount.cache_dir, Path("/run/dsfs")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((runtime_dir_of(mount.mountpoint) / "control.sock").stat().st_mode) == 0o600


def test_secrets_appear_nowhere(mounts: Mounts, tmp_path: Path) -> None:
    """A server that refuses them all, so that every way to complain is walked."""
    fakes = ("fake-passw0rd-11111", "fake-t0ken-22222", "fake-access-33333", "fake-secret-44444")

    def secret(name: str, **values: str) -> dict[str, object]:
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}

    with web.hostile() as server:
        for path in ("/data/", "/bucket", "/bucket/"):
            server.always(path, web.status(403))
        options = {"endpoint": server.url.rstrip("/")}
        manifest = write_manifests(
            tmp_path / "m.yaml",
            dataset("basic", f"{server.url}data/", type="HTTP", secretRef="basic"),
            dataset("token", f"{server.url}data/", type="HTTP", secretRef="token"),
            dataset("keys", "s3://bucket/x", type="S3", secretRef="keys", source={"options": options}),
            secret("basic", username="someone", password=fakes[0]),
            secret("token", token=fakes[1]),
            secret("keys", **{"access-key": fakes[2], "secret-key": fakes[3]}),
        )
        mount = mounts.mount("-f", manifest)
        mount.expect_log("listing failed")
        for name in ("basic", "token", "keys"):
            mount.wait_phase("FAILED", name)
        sent = " ".join(str(dict(each.headers)) for each in server.asked)
        assert "authorization" in sent, "the secrets are used"
        shown = [str(mount.status()), mount.log(), str(mount.metrics())]
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                shown.append(Path(f"/proc/{name}/cmdline").read_text(errors="replace"))
            except OSError:
                continue
    shown += [data.decode("latin-1") for _path, data in contents_below(mount.cache_dir, Path("/run/dsfs"))]
    for fake in fakes:
        assert not [text[:200] for text in shown if fake in text]


@pytest.mark.parametrize("how", ["directory", "environment"])
def test_other_places_for_secrets(mounts: Mounts, tmp_path: Path, how: str) -> None:
    with web.hostile() as server:
        server.files["/data/"] = b'<h1>Index of /data/</h1><a href="../">../</a><a href="a">a</a>'
        server.always("/data/", lambda asked, data, answer: answer.with_headers(Content_Type="text/html"))
        server.files["/data/a"] = b"inside"
        spec = {"secretRef": "web"} if how == "directory" else {}
        manifest = write_manifests(
            tmp_path / "m.yaml", dataset("web", f"{server.url}data/", "team", type="HTTP", **spec)
        )
        env = {}
        argv: list[str | Path] = ["-f", manifest]
        if how == "directory":
            (tmp_path / "secrets/team/web").mkdir(parents=True)
            (tmp_path / "secrets/team/web/username").write_text("someone\n")
            (tmp_path / "secrets/team/web/password").write_text("fake-passw0rd\n")
            argv.append(f"--secrets={tmp_path}/secrets")
        else:
            (tmp_path / "netrc").write_text(f"machine {HOST} login someone password fake-passw0rd\n")
            (tmp_path / "netrc").chmod(0o600)
            env["NETRC"] = str(tmp_path / "netrc")
        mount = mounts.mount(*argv, dataset="team/web", env=env)
        assert (mount.root / "a").read_bytes() == b"inside"
        authorised = [each for each in server.asked if "authorization" in each.headers]
        assert authorised
        assert eventually(lambda: mount.dataset()["phase"] == "READY", 10, "sealed")


def test_a_claim_belongs_to_its_namespace(mounts: Mounts, tmp_path: Path) -> None:
    """A flat --pvc-root is for a mount of one namespace: else red could name what is blue's."""
    root = tmp_path / "claims"
    for place in ("blue/private", "loose"):
        (root / place).mkdir(parents=True)
        (root / place / "f").write_bytes(b"inside")
    several = write_manifests(
        tmp_path / "m.yaml",
        dataset("own", "pvc://private", "blue"),
        dataset("theirs", "pvc://blue/private", "red"),
        dataset("loose", "pvc://loose", "red"),
        dataset("hand", "manual://", "red", type="MANUAL"),
    )
    mount = mounts.mount("-f", several, f"--pvc-root={root}")
    mount.expect_log("cannot be used|listing failed")
    assert (mount.mountpoint / "blue/own/f").read_bytes() == b"inside"
    for name in ("theirs", "loose", "hand"):
        assert "single namespace" in mount.wait_phase("FAILED", name)["message"]
        with pytest.raises(OSError):  # noqa: PT011  # whatever it is, it is not the bytes
            (mount.mountpoint / f"red/{name}/f").read_bytes()
    (root / "red/loose").mkdir(parents=True)
    (root / "red/loose/f").write_bytes(b"red")
    assert dsfs("dataset", "delete", "red/loose", f"-m{mount.mountpoint}").returncode == 0
    assert dsfs("dataset", "apply", f"-f{several}", f"-m{mount.mountpoint}").returncode == 0
    assert (mount.mountpoint / "red/loose/f").read_bytes() == b"red"
    with pytest.raises(OSError):  # noqa: PT011
        (mount.mountpoint / "red/theirs/f").read_bytes()
    assert mount.unmount().returncode == 0

    alone = write_manifests(tmp_path / "one.yaml", dataset("loose", "pvc://loose", "green"))
    single = mounts.mount("-f", alone, f"--pvc-root={root}", dataset="green/loose")
    assert (single.root / "f").read_bytes() == b"inside"


@pytest.mark.parametrize("session", SESSIONS)
def test_a_link_in_a_claim_shows_nothing_outside_of_it(mounts: Mounts, tmp_path: Path, session: str) -> None:
    train, secret = tmp_path / "claims/team/corpus/train", tmp_path / "secrets"
    train.parent.mkdir(parents=True)
    secret.mkdir()
    (secret / "f").write_bytes(b"secret")
    train.symlink_to(secret)
    ref = {"volumeClaimRef": {"name": "corpus", "subPath": "train"}}
    manifest = write_manifests(
        tmp_path / "m.yaml",
        dataset("own", "pvc://corpus/train", "team"),
        dataset("hand", "manual://", "team", type="MANUAL", **ref),
    )
    mount = mounts.mount("-f", manifest, f"--pvc-root={tmp_path}/claims", session=session)
    mount.expect_log("listing failed")
    for name in ("own", "hand"):
        assert f"{train} is a symbolic link" in mount.wait_phase("FAILED", name)["message"]
        with pytest.raises(PermissionError):
            (mount.mountpoint / f"team/{name}/f").read_bytes()
        with pytest.raises(PermissionError):
            os.listdir(mount.mountpoint / f"team/{name}")
    train.unlink()
    train.mkdir()
    (train / "f").write_bytes(b"train")
    for name in ("own", "hand"):
        assert dsfs("dataset", "resync", f"team/{name}", f"-m{mount.mountpoint}").returncode == 0
        assert (mount.mountpoint / f"team/{name}/f").read_bytes() == b"train"


def test_what_the_cache_may_hold_changes_without_a_mount_of_its_own(mounts: Mounts, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in "ab":
        (source / name).write_bytes(os.urandom(200_000))

    def applied(quota: str) -> None:
        documents = (
            dataset("own", source, "one", share=True, cache={"quota": quota}),
            dataset("ref", "dataset://one/own", "two", type="REFERENCE"),
        )
        manifest = write_manifests(tmp_path / "n.yaml", *documents)
        done = dsfs("dataset", "apply", "-f", manifest, f"-m{mount.mountpoint}")
        assert done.returncode == 0, done.stderr

    mount = mounts.mount("-f", write_manifests(tmp_path / "m.yaml", dataset("other", source)))
    applied("250KiB")
    mount.wait_phase("READY", "own")
    own, ref = mount.mountpoint / "one/own", mount.mountpoint / "two/ref"
    devices = [os.stat(path).st_dev for path in (own, ref)]
    with (own / "a").open("rb") as held:
        for name in "ab":
            assert (own / name).read_bytes() == (source / name).read_bytes()
        eventually(lambda: mount.dataset("own")["cached_bytes"] == 200_000, 10, "one of them is kept")
        applied("1MiB")
        assert [os.stat(path).st_dev for path in (own, ref)] == devices
        for name in "ab":
            drop_pages(own / name)
            assert (own / name).read_bytes() == (source / name).read_bytes()
        eventually(lambda: mount.dataset("own")["cached_bytes"] == 400_000, 10, "both of them are kept")
        assert held.read() == (source / "a").read_bytes()


def test_labels_of_a_namespace_that_are_applied_decide_at_once(mounts: Mounts, source: Path, tmp_path: Path) -> None:
    selector = {"matchLabels": {"team": "nlp"}}
    manifest = write_manifests(
        tmp_path / "m.yaml",
        dataset("own", source, "one", share=True, shareToNamespaceSelector=selector),
        dataset("ref", "dataset://one/own", "two", type="REFERENCE"),
    )
    mount = mounts.mount("-f", manifest, "--namespace=two")
    mount.expect_log("dataset cannot be used|listing failed")
    assert names_in(mount) == {"two/ref"}
    assert "kubernetes.io/metadata.name=two" in mount.wait_phase("FAILED", "ref")["message"]

    def applied(**labels: str) -> list[str]:
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "two", "labels": labels}}
        done = dsfs("dataset", "apply", "-f", write_manifests(tmp_path / "n.yaml", namespace), f"-m{mount.mountpoint}")
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert applied(team="nlp") == ["namespace two changed"]
    assert names_in(mount) == {"one/own", "two/ref"}
    mount.wait_phase("READY", "ref")
    ref = mount.mountpoint / "two/ref"
    device = os.stat(ref).st_dev
    assert (ref / "a.txt").read_bytes() == b"first"
    assert applied(team="nlp") == ["namespace two unchanged"]
    assert applied(team="nlp", tier="x") == ["namespace two changed"]
    assert os.stat(ref).st_dev == device, "it may see as much as before"
    assert dsfs("restart", mount.mountpoint).returncode == 0
    assert names_in(mount) == {"one/own", "two/ref"}
    assert applied(team="audio") == ["namespace two changed"]
    assert "not shared" in mount.wait_phase("FAILED", "ref")["message"]
    assert names_in(mount) == {"two/ref"}


def test_references_follow_what_they_refer_to_however_far_away(mounts: Mounts, source: Path, tmp_path: Path) -> None:
    """What is shared no longer, or deleted, is shown through no REFERENCE; an applied syncInterval counts."""

    def documents(*, share: bool, **spec: Any) -> tuple[dict[str, Any], ...]:
        return (
            dataset("own", source, "one", share=share, **spec),
            dataset("mid", "dataset://one/own", "two", type="REFERENCE", share=True),
            dataset("end", "dataset://two/mid", "three", type="REFERENCE"),
        )

    manifest = write_manifests(tmp_path / "m.yaml", *documents(share=True))
    mount = mounts.mount("-f", manifest)
    mount.expect_log("dataset cannot be used|listing failed")
    end = mount.mountpoint / "three/end"
    assert (end / "a.txt").read_bytes() == b"first"

    def applied(*changed: dict[str, Any]) -> list[str]:
        done = dsfs("dataset", "apply", "-f", write_manifests(tmp_path / "n.yaml", *changed), f"-m{mount.mountpoint}")
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    device = os.stat(end).st_dev
    assert applied(*documents(share=True)) == ["one/own unchanged", "two/mid unchanged", "three/end unchanged"]
    assert os.stat(end).st_dev == device, "nothing has changed, so nothing was mounted anew"
    assert applied(dataset("own", source, "one", share=True, syncInterval="1s")) == ["one/own changed"]
    (source / "new").write_bytes(b"new")
    eventually(lambda: (mount.mountpoint / "one/own/new").exists(), 20, "the source is listed by the clock")

    assert applied(dataset("own", source, "one", share=False)) == ["one/own changed"]
    for name in ("mid", "end"):
        assert "not shared" in mount.wait_phase("FAILED", name)["message"]
    with pytest.raises(OSError):  # noqa: PT011
        os.listdir(end)
    applied(*documents(share=True))
    eventually(lambda: (end / "a.txt").exists(), 20, "it is shared again")
    assert dsfs("dataset", "delete", "one/own", f"-m{mount.mountpoint}").returncode == 0
    for name in ("mid", "end"):
        assert "not there" in mount.wait_phase("FAILED", name)["message"]
