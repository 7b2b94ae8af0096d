"""``dsfs doctor --bundle``: what a maintainer needs is in it, and no secret, wherever it was planted."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import tarfile
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.scrub import Scrubber
from tests.mounts import Mounts, dsfs, runtime_dir_of
from tests.servers.process import free_ports

# One for each place that a secret can lie in; characters that are written differently in URLs, JSON and base64.
PLANTED = {
    place: f'pl4nted/{place}+"=x%&'
    for place in ("document", "directory", "environment", "aws", "netrc", "log", "uri", "query", "signature", "header")
}


def bundle_of(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        return {
            member.name.removeprefix("dsfs-bundle/"): archive.extractfile(member).read().decode()  # type: ignore[union-attr]
            for member in archive.getmembers()
        }


def test_no_planted_secret_is_in_it(tmp_path: Path, mounts: Mounts) -> None:
    home = tmp_path / "home"
    (home / ".aws").mkdir(parents=True)
    (home / ".aws" / "credentials").write_text(f"[default]\naws_secret_access_key = {PLANTED['aws']}\n")
    (home / ".netrc").write_text(f"machine example.org login me password {PLANTED['netrc']}\n")
    secrets = tmp_path / "secrets" / "vision" / "from-directory"
    secrets.mkdir(parents=True)
    (secrets / "access-key").write_text(PLANTED["directory"])
    (secrets / "secret-key").write_text(PLANTED["directory"] + "\n")
    data = base64.b64encode(PLANTED["document"].encode()).decode()
    dead = f"http://127.0.0.1:{free_ports(1)[0]}/bucket"
    manifests = tmp_path / "sets.yaml"
    manifests.write_text(f"""\
apiVersion: v1
kind: Secret
metadata: {{name: from-document, namespace: vision}}
data: {{token: {data}}}
---
apiVersion: dsfs.dev/v1alpha1
kind: Dataset
metadata: {{name: web, namespace: vision}}
spec: {{source: {{type: HTTP, uri: "{dead}/"}}, secretRef: from-document}}
---
apiVersion: dsfs.dev/v1alpha1
kind: Dataset
metadata: {{name: bucket, namespace: vision}}
spec: {{source: {{type: S3, uri: "s3://bucket/", options: {{endpoint: "{dead}"}}}}, secretRef: from-directory}}
""")
    environment = {"HOME": str(home), "HF_TOKEN": PLANTED["environment"], "MY_API_KEY": PLANTED["environment"]}
    mount = mounts.mount("-f", manifests, "--secrets", tmp_path / "secrets", env=environment)
    mount.expect_log(".")
    # What libraries write into a log, whatever dsfs' own events leave out.
    with (runtime_dir_of(mount.mountpoint) / "server.log").open("a") as log:
        for value in PLANTED.values():
            if value not in (PLANTED["log"], PLANTED["uri"], PLANTED["query"], PLANTED["signature"], PLANTED["header"]):
                for form in (
                    value,
                    quote(value, safe=""),
                    base64.b64encode(value.encode()).decode(),
                    json.dumps(value),
                ):
                    log.write(f"ValueError: cannot parse {form}: line 1\n")
        log.write(f"retrying https://me:{quote(PLANTED['uri'], safe='')}@example.org/x\n")
        log.write(f"retrying https://example.org/x?se=1&spr={quote(PLANTED['query'], safe='')}&sv=2\n")
        log.write(f"GET /x?X-Amz-Signature={quote(PLANTED['signature'], safe='')}\n")
        log.write(f"headers: Authorization: Bearer {quote(PLANTED['header'], safe='')}\n")
        log.write(f"password={quote(PLANTED['log'], safe='')}\nthe last line of the log\n")
    target = tmp_path / "bundle.tar.gz"
    done = dsfs("doctor", "--bundle", target, env=environment, timeout_s=240)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    files = bundle_of(target)
    whole = "".join(files.values())
    assert "pl4nted" not in whole
    assert data not in whole

    name = runtime_dir_of(mount.mountpoint).name
    status = json.loads(files[f"{name}/status.json"])
    assert {each["name"] for each in status["datasets"]} == {"web", "bucket"}
    assert "the last line of the log" in files[f"{name}/server.log"]
    assert "https://***@example.org/x" in files[f"{name}/server.log"]
    assert "dsfs_server_restarts_total" in files[f"{name}/metrics.txt"]
    assert json.loads(files[f"{name}/settings.json"])["cache_dir"] == str(mount.cache_dir)
    assert str(mount.mountpoint) in files["mountinfo.txt"]
    assert "/sys/fs/fuse/connections" in files["connections.txt"]
    assert "trio " in files["versions.txt"]
    assert json.loads(files["doctor.json"])
    server = files[f"{name}/process-{mount.server_pid}.txt"]
    assert "VmRSS" in server
    assert "thread " in server
    assert f"{name}/process-{mount.keeper_pid}.txt" in files


def test_it_is_written_while_a_server_hangs(tmp_path: Path, mounts: Mounts) -> None:
    (tmp_path / "source").mkdir()
    mount = mounts.mount(tmp_path / "source")
    server, keeper = mount.server_pid, mount.keeper_pid
    for pid in (keeper, server):  # it would end a server that says nothing
        os.kill(pid, signal.SIGSTOP)
    try:
        done = dsfs("doctor", "--bundle", tmp_path / "bundle.tar.gz", timeout_s=240)
    finally:
        for pid in (server, keeper):
            os.kill(pid, signal.SIGCONT)
    assert done.returncode == 0, done.stderr
    files = bundle_of(tmp_path / "bundle.tar.gz")
    name = runtime_dir_of(mount.mountpoint).name
    assert f"{name}/status.json: timed out" in files["missing.txt"]
    assert f"not in it: {name}/status.json" in done.stderr
    assert "State:\tT" in files[f"{name}/process-{server}.txt"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    done = dsfs("doctor", "--bundle", tmp_path / "nowhere" / "bundle.tar.gz")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "nowhere" in done.stderr


@given(st.lists(st.text(min_size=4, max_size=12), max_size=4), st.lists(st.text(max_size=20), max_size=4))
def test_a_known_value_is_never_left(values: list[str], around: list[str]) -> None:
    text = "".join(piece + value for piece, value in zip(around, values, strict=False))
    cleaned = Scrubber(values).clean(text)
    # A value that is part of what replaces it, or comes about by a replacement, is no secret that was in the text.
    assert all(value not in cleaned or set(value) <= set("*@?/:") or value not in text for value in values)


@pytest.mark.parametrize("text", ["", "no secret here", "s3://bucket/a/b?", "dataset=vision/imagenet phase=READY"])
def test_other_text_stays(text: str) -> None:
    assert Scrubber(["abcd-efgh"]).clean(text).rstrip("*") == text.rstrip("*")
