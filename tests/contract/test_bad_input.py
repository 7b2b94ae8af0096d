"""Everything that can be wrong with what is given: one line that says what, where, what to do; exit status 1 or 2."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from typer.testing import CliRunner

from daemon.cli.app import app
from tests.contract.conftest import contents_below, one_line_failure, wrong_usage
from tests.manifests import dataset, write_manifests
from tests.mounts import HOST, Mounts, dsfs, is_mounted, leftovers
from tests.servers import hostile as web
from tests.servers.http_server import nginx
from tests.servers.process import free_ports

Try = Callable[..., CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path, request: pytest.FixtureRequest) -> object:
    """What failed leaves neither a mount nor a process, and no ghost in ``dsfs status``."""
    yield
    if "mounts" not in request.fixturenames:
        assert leftovers(tmp_path) == []


# -- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("nosuch://host/x", ["nosuch", "s3"]),
        ("name-without-scheme", ["s3"]),
        ("s3://", ["s3"]),
        ("", ["empty"]),
        ("file://relative/path", ["file:///"]),
        ("s3://bucket/\n", ["control character"]),
    ],
)
def test_wrong_uri(try_mount: Try, uri: str, words: list[str]) -> None:
    one_line_failure(try_mount(uri), *words)


@pytest.mark.parametrize(
    "uri",
    ["git+https://example.invalid/x.git", "hf://datasets/org/name", "hdfs://host/x", "nfs://host/x", "dataset://ns/x"],
)
def test_kinds_of_sources_that_are_not_there_yet(try_mount: Try, uri: str) -> None:
    """Refused as such, and not tried."""
    one_line_failure(try_mount(uri))


def test_directory_that_is_not_there(try_mount: Try, tmp_path: Path) -> None:
    one_line_failure(try_mount(tmp_path / "none"), str(tmp_path / "none"), "not there")


def test_url_that_is_not_there(try_mount: Try, tmp_path: Path) -> None:
    with nginx(tmp_path) as server:
        one_line_failure(try_mount(f"{server.url}none/"), f"{server.url}none/")


def test_nobody_listens(try_mount: Try) -> None:
    port = free_ports(1)[0]
    one_line_failure(try_mount(f"http://{HOST}:{port}/", "--read-timeout=1s"), f"{HOST}:{port}")


@pytest.mark.parametrize("code", [401, 403])
def test_refused(try_mount: Try, code: int) -> None:
    with web.hostile() as server:
        server.always("/data/", web.status(code))
        line = one_line_failure(try_mount(f"{server.url}data/"), f"{server.url}data/")
    assert "refused" in line or str(code) in line


def test_bucket_that_is_not_there(try_mount: Try) -> None:
    """Spoken by a server that knows no bucket at all: 404 NoSuchBucket for everything."""
    body = b"<?xml version='1.0'?><Error><Code>NoSuchBucket</Code><Message>none</Message></Error>"

    def missing(asked: web.Asked, data: bytes, answer: web.Answer) -> web.Answer:
        return web.Answer(404, {"Content-Type": "application/xml"}, body)

    with web.hostile() as server:
        for path in ("/nobucket", "/nobucket/"):
            server.always(path, missing)
        options = [f"--option=endpoint={server.url.rstrip('/')}", "--option=anonymous=true"]
        one_line_failure(try_mount("s3://nobucket", *options), "nobucket")


def test_s3_that_refuses(try_mount: Try) -> None:
    body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>no</Message></Error>"

    def refused(asked: web.Asked, data: bytes, answer: web.Answer) -> web.Answer:
        return web.Answer(403, {"Content-Type": "application/xml"}, body)

    with web.hostile() as server:
        for path in ("/bucket", "/bucket/"):
            server.always(path, refused)
        env = {"AWS_ACCESS_KEY_ID": "fake-id", "AWS_SECRET_ACCESS_KEY": "fake-secret-0123456789"}
        done = try_mount("s3://bucket", f"--option=endpoint={server.url.rstrip('/')}", env=env)
    assert "fake-secret" not in one_line_failure(done, "bucket")


@pytest.mark.parametrize(
    "argv",
    [
        ["https://user:fake-passw0rd@example.invalid/x/"],
        ["https://example.invalid/x/?X-Amz-Signature=fake-passw0rd"],
        ["s3://bucket/x", "--option=secret-key=fake-passw0rd"],
        ["http://example.invalid/", "--option=Authorization=Bearer fake-passw0rd"],
    ],
)
def test_a_credential_on_the_command_line_is_refused_and_not_repeated(try_mount: Try, argv: list[str]) -> None:
    done = try_mount(*argv)
    line = one_line_failure(done, "Secret")
    assert "fake-passw0rd" not in line
    assert not [path for path, data in contents_below(Path("/run/dsfs")) if b"fake-passw0rd" in data]


# -- mount points -----------------------------------------------------------------------------------------------------


def test_mount_point_missing(source: Path, tmp_path: Path) -> None:
    done = dsfs("mount", source, tmp_path / "none", f"--cache-dir={tmp_path}/cache")
    one_line_failure(done, str(tmp_path / "none"), "does not exist", "mkdir")


def test_mount_point_not_empty(try_mount: Try, source: Path, tmp_path: Path) -> None:
    (tmp_path / "mnt/file").touch()
    one_line_failure(try_mount(source), str(tmp_path / "mnt"), "not empty")


def test_mount_point_is_a_file(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = dsfs("mount", source, tmp_path / "file", f"--cache-dir={tmp_path}/cache")
    one_line_failure(done, "not a directory")


def test_mount_point_in_use(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source)
    done = dsfs("mount", source, mount.mountpoint, f"--cache-dir={mount.cache_dir}-other")
    one_line_failure(done, str(mount.mountpoint), "already", str(mount.keeper_pid))
    assert (mount.root / "a.txt").read_bytes() == b"first"


def test_unmount_what_is_not_mounted(tmp_path: Path) -> None:
    one_line_failure(dsfs("unmount", tmp_path), str(tmp_path), "nothing mounted")
    one_line_failure(dsfs("unmount", "/proc"), "/proc")
    one_line_failure(dsfs("status", tmp_path), str(tmp_path))


# -- cache directories ------------------------------------------------------------------------------------------------


def test_cache_directory_is_a_file(try_mount: Try, source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    one_line_failure(try_mount(source), str(tmp_path / "cache"), "--cache-dir")


def test_cache_directory_cannot_be_made(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    done = dsfs("mount", source, tmp_path / "mnt", "--cache-dir=/proc/none")
    one_line_failure(done, "/proc/none", "--cache-dir")


def test_cache_directory_of_unknown_layout(try_mount: Try, source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/version").write_text("99\n")
    one_line_failure(try_mount(source), str(tmp_path / "cache"), "99")
    assert sorted(os.listdir(tmp_path / "cache")) in (["version"], ["lock", "version"])


def test_cache_directory_with_foreign_files(try_mount: Try, source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/thesis.tex").write_text("precious")
    one_line_failure(try_mount(source), str(tmp_path / "cache"), "thesis.tex")
    assert (tmp_path / "cache/thesis.tex").read_text() == "precious"


def test_cache_directory_in_use(mounts: Mounts, try_mount: Try, source: Path, tmp_path: Path) -> None:
    mount = mounts.mount(source)
    done = dsfs("mount", source, tmp_path / "mnt", f"--cache-dir={mount.cache_dir}")
    one_line_failure(done, str(mount.cache_dir), "another dsfs server", str(mount.status()["server_pid"]))


def test_a_source_that_takes_connections_and_answers_nothing(try_mount: Try) -> None:
    """However short reads are to wait, the mount ends with what the source is waited for."""
    with socket.create_server((HOST, 0)) as silent:
        uri = f"http://{HOST}:{silent.getsockname()[1]}/data/"
        one_line_failure(try_mount(uri, "--read-timeout=2s"), uri, "nothing answered in time")


# -- manifests --------------------------------------------------------------------------------------------------------

GOOD = """\
apiVersion: dsfs.dev/v1alpha1
kind: Dataset
metadata: {name: good, namespace: team}
spec: {source: {type: PVC, uri: /tmp}}
---
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("apiVersion: dsfs.dev/v1alpha1\nkind: Dataset\n  bad: [indent", ["line 3"]),
        (GOOD + "kind: [", ["line 6"]),
        (GOOD + "just text", ["document 2"]),
        (GOOD + GOOD, ["document 2", "good"]),
        ("{apiVersion: dsfs.dev/v1alpha1, kind: Dataset, metadata: {name: a}, spec: {}}", ["spec.source", "missing"]),
        (
            "{apiVersion: dsfs.dev/v1alpha1, kind: Dataset, metadata: {name: a}, spec: {source: {type: PVC}}}",
            ["document 1", "spec.source.uri", "missing"],
        ),
        (
            "{apiVersion: dsfs.dev/v1alpha1, kind: Dataset, metadata: {name: a}, spec: {source: {type: PVC, uri: 3}}}",
            ["document 1", "spec.source.uri", "text"],
        ),
        (
            GOOD.replace("PVC", "FLOPPY"),
            ["document 1", "spec.source.type", "S3"],
        ),
        (GOOD.replace("name: good", "name: a/b"), ["document 1", "metadata.name"]),
        (GOOD.replace("name: good", f"name: {'a' * 300}"), ["document 1", "metadata.name", "253"]),
        (GOOD.replace("namespace: team", "namespace: a/b"), ["metadata.namespace"]),
        (GOOD.replace("{source", "{share: maybe, source"), ["spec.share", "true or false"]),
        (GOOD.replace("{source", "{reedPath: auto, source"), ["spec.reedPath", "readPath"]),
        (GOOD.replace("v1alpha1", "v9"), ["apiVersion"]),
        (GOOD.replace("kind: Dataset", "kind: Deployment"), ["kind"]),
        (GOOD.replace("dsfs.dev/v1alpha1\nkind: Dataset", "apps/v1\nkind: Deployment"), ["Deployment is passed over"]),
        (GOOD.replace("uri: /tmp", "uri: 'https://u:fake-passw0rd@host/'"), ["spec.source.uri", "password"]),
    ],
)
def test_manifests(try_mount: Try, tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "datasets.yaml"
    file.write_text(text)
    line = one_line_failure(try_mount("-f", file), str(file), *words)
    assert "fake-passw0rd" not in line
    for verb in ("check", "apply"):  # before it looks for a mount
        assert one_line_failure(dsfs("dataset", verb, "-f", file)) == line


def test_manifests_that_are_fine(source: Path, tmp_path: Path) -> None:
    """Nothing but the text is looked at: no mount is needed, and no source asked."""
    one = write_manifests(tmp_path / "m/1.yaml", dataset("one", source))
    done = dsfs("dataset", "check", "-f", one)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 manifest is fine\n", "")
    write_manifests(tmp_path / "m/2.yaml", dataset("two", tmp_path / "none"), dataset("three", "s3://none", type="S3"))
    done = dsfs("dataset", "check", "-f", tmp_path / "m", "-f", one)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 manifests are fine\n", "")


@pytest.mark.parametrize(
    ("kind", "uri", "options", "words"),
    [
        ("S3", "s3://b", {"endpont": "http://h"}, ["spec.source.options.endpont", "endpoint"]),
        ("S3", "s3://b", {"endpoint": "minio at 9000"}, ["spec.source", "option endpoint must be a URL"]),
        ("S3", "s3://b", {"anonymous": "maybe"}, ["spec.source", "option anonymous", "true"]),
        ("S3", "http://b", {}, ["spec.source", "names no bucket"]),
        ("S3", "s3://", {}, ["spec.source", "names no bucket"]),
        ("S3", "s3://b c", {}, ["spec.source", "is no bucket name"]),
        ("PVC", "pvc://../x", {}, ["spec.source", "names no claim"]),
        ("REFERENCE", "dataset://x", {}, ["spec.source.uri", "dataset://NAMESPACE/NAME"]),
        ("REFERENCE", "dataset://other/closed", {}, ["spec.source.uri", "not shared with namespace team"]),
        ("REFERENCE", "dataset://team/data", {}, ["spec.source.uri", "refers back to itself"]),
        ("CONDA", "conda://x", {}, ["spec.source", "is built, not read"]),
    ],
)
def test_sources_that_could_never_be_read(
    tmp_path: Path, kind: str, uri: str, options: dict[str, str], words: list[str]
) -> None:
    """What would make a dataset FAILED at once is told by the check already."""
    wrong = dataset("data", uri, "team", type=kind, source={"options": options}, secretRef="not-here")
    file = write_manifests(tmp_path / "m.yaml", dataset("closed", "/tmp", "other"), wrong)
    done = dsfs("dataset", "check", "-f", file)
    one_line_failure(done, str(file), "document 2", *words)


def test_what_only_another_machine_knows_is_not_wrong(tmp_path: Path) -> None:
    """A Secret, a claim, what was applied before, a package."""
    options = {"bandwidthLimit": "1M", "other": "x"}
    theirs = dataset("theirs", "https://h/r.git", "team", type="GIT", source={"options": options})
    file = write_manifests(
        tmp_path / "m.yaml",
        dataset("claim", "pvc://claim/x", "team"),
        dataset("by-hand", "manual://", "other", type="MANUAL"),
        dataset("azure", "az://container/x", "team", type="FSSPEC", secretRef="account"),
        dataset("lent", "dataset://other/there", "team", type="REFERENCE"),
        {**theirs, "apiVersion": "dataset.baizeai.io/v1alpha1"},
    )
    done = dsfs("dataset", "check", "-f", file)
    assert (done.returncode, done.stdout) == (0, "5 manifests are fine\n")
    (line,) = done.stderr.splitlines()
    assert "document 4: field spec.source.uri: dataset://other/there is none of these manifests" in line


def test_what_is_for_others_in_a_file_for_kubectl_is_told(source: Path, tmp_path: Path) -> None:
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "claim"}}
    file = write_manifests(tmp_path / "m.yaml", claim, dataset("one", source))
    done = dsfs("dataset", "check", "-f", file)
    assert (done.returncode, done.stdout) == (0, "1 manifest is fine\n")
    told = "kind PersistentVolumeClaim is passed over (it means nothing to dsfs)"
    assert done.stderr == f"dsfs: {file}: document 1: {told}\n"


def test_manifest_that_is_not_there(try_mount: Try, tmp_path: Path) -> None:
    one_line_failure(try_mount("-f", tmp_path / "none.yaml"), str(tmp_path / "none.yaml"))


def test_manifests_from_a_pipe(mounts: Mounts, try_mount: Try, source: Path, tmp_path: Path) -> None:
    """A later server could not read them again, so they are for `dsfs dataset apply`."""
    wrong_usage(try_mount("-f", "/dev/null"), "/dev/null")
    (source / "\U0001f600").mkdir()
    manifest = dataset("smile", f"file://{source}", type="NFS")
    manifest["spec"]["source"]["options"] = {"directory": f"{source}/\U0001f600"}
    mount = mounts.mount("-f", write_manifests(tmp_path / "m.yaml", dataset("one", f"file://{source}")))
    done = dsfs("dataset", "apply", "-f", "/dev/stdin", f"-m{mount.mountpoint}", stdin=json.dumps(manifest))
    assert done.returncode == 0, done.stderr
    assert "smile" in done.stdout
    (tmp_path / "m.json").write_text(json.dumps(manifest))
    done = dsfs("dataset", "apply", "-f", tmp_path / "m.json", f"-m{mount.mountpoint}")
    assert done.returncode == 0, done.stderr
    shown = json.loads(dsfs("dataset", "show", "default/smile", "--json", f"-m{mount.mountpoint}").stdout)
    assert shown["manifest"]["spec"]["source"]["options"]["directory"] == f"{source}/\U0001f600"


def test_two_of_one_name_in_two_files(try_mount: Try, tmp_path: Path, source: Path) -> None:
    first = write_manifests(tmp_path / "m/1.yaml", dataset("same", source))
    second = write_manifests(tmp_path / "m/2.yaml", dataset("same", source))
    one_line_failure(try_mount("-f", tmp_path / "m"), str(first), str(second), "same")


# -- usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ["frobnicate"],
        ["dataset", "frobnicate"],
        ["mount", "/tmp", "/mnt", "--frobnicate"],
        ["status", "--frobnicate"],
        ["mount"],
        ["mount", "/tmp"],
        ["mount", "/tmp", "/mnt", "/x"],
        ["mount", "-f", "/tmp/x.yaml"],
        ["mount", "-f", "/tmp/x.yaml", "/tmp", "/mnt"],
        ["mount", "/tmp", "/mnt", "--session", "telepathy"],
        ["mount", "/tmp", "/mnt", "--read-timeout", "soon"],
        ["mount", "/tmp", "/mnt", "--cache-size", "big"],
        ["mount", "/tmp", "/mnt", "--cache-size", "120%"],
        ["mount", "/tmp", "/mnt", "--min-free", "some"],
        ["mount", "/tmp", "/mnt", "--scrub-every", "often"],
        ["mount", "/tmp", "/mnt", "--http", "nowhere"],
        ["mount", "/tmp", "/mnt", "--http", "localhost:99999"],
        ["mount", "/tmp", "/mnt", "--option", "novalue"],
        ["mount", "/tmp", "/mnt", "--namespace", "x"],
        ["mount", "-f", "/tmp/x.yaml", "/mnt", "--option", "a=b"],
        ["unmount"],
        ["evict"],
        ["dataset", "show"],
    ],
)
def test_wrong_usage(argv: list[str]) -> None:
    wrong_usage(dsfs(*argv), "Usage")


@pytest.mark.parametrize("verb", [("mount",), ("serve", "--keeper=/tmp/none.sock")])
@pytest.mark.parametrize("name", ["A B", "team/data", "", "Team", "a" * 64])
def test_a_namespace_that_none_can_be_called(tmp_path: Path, verb: tuple[str, ...], name: str) -> None:
    call = (*verb, "-f", tmp_path / "none.yaml", tmp_path, f"--cache-dir={tmp_path}/cache")
    wrong_usage(dsfs(*call, "--namespace=team", f"--namespace={name}"), f"--namespace {name}: ")


VERBS = {
    "": "mount unmount restart status warm hint evict pin unpin verify export top stats bench doctor probe dataset "
    "serve keeper",
    "dataset": "list show apply check resync delete clone set-credential",
}


@pytest.mark.parametrize("group", VERBS)
def test_help_names_every_verb_and_no_other_is_known(group: str) -> None:
    words = [group] if group else []
    done = dsfs(*words, "--help")
    assert done.returncode == 0
    named = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert set(VERBS[group].split()) <= named
    wrong_usage(dsfs(*words, "levitate"), "No such command")


@pytest.mark.parametrize("group", VERBS)
def test_short_help_of_every_verb(group: str) -> None:
    for verb in ("", *VERBS[group].split()):
        words = [word for word in (group, verb) if word]
        short, long = (CliRunner().invoke(app, [*words, flag]) for flag in ("-h", "--help"))
        assert (short.exit_code, short.output) == (0, long.output)
        assert "Usage: " in short.output


def test_version() -> None:
    done = dsfs("--version")
    assert (done.returncode, done.stdout) == (0, f"dsfs {metadata.version('dsfs')}\n")


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_http_address_in_use(try_mount: Try, source: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        one_line_failure(try_mount(source, f"--http={HOST}:{taken.getsockname()[1]}"), "--http", "in use")


def test_dataset_that_is_not_there(mounts: Mounts, source: Path) -> None:
    mount = mounts.mount(source)
    where = f"-m{mount.mountpoint}"
    one_line_failure(dsfs("dataset", "show", "none/none", where), "none/none", "default/source")
    one_line_failure(dsfs("evict", "none", where), "none", "default/source")
    assert is_mounted(mount.mountpoint)


def test_verify_of_what_is_no_cache(tmp_path: Path) -> None:
    one_line_failure(dsfs("verify", f"--cache-dir={tmp_path}"), str(tmp_path))
    one_line_failure(dsfs("verify", f"--cache-dir={tmp_path}/none"), f"{tmp_path}/none")
    assert list(tmp_path.iterdir()) == []
