"""The samples of BaizeAI/dataset (config/samples), field by field, with the addresses replaced by servers on loopback:
mounted as they are, all at once, and every byte read."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.manifests import write_manifests
from tests.mounts import Mounts
from tests.servers.git_server import http_git
from tests.servers.http_server import nginx
from tests.servers.hub_server import hub
from tests.servers.listing_server import listing_server

FILES = {"README.md": b"words", "data/part-0.bin": bytes(range(256)) * 300}


def sample(name: str, kind: str, uri: str, secret: bool = True, **options: str) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "dataSyncRound": 1,
        "mountOptions": {"gid": 1000, "mode": "0774", "path": "/", "uid": 1000},
        "source": {"type": kind, "uri": uri, "options": {**options, "bandwidthLimit": "5M"}},
        "volumeClaimTemplate": {
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}}
        },
    }
    if secret:
        spec["secretRef"] = f"{name}-credentials"
    metadata = {"name": name, "namespace": "team"}
    return {"apiVersion": "dataset.baizeai.io/v1alpha1", "kind": "Dataset", "metadata": metadata, "spec": spec}


def secret_of(name: str, **keys: str) -> dict[str, Any]:
    metadata = {"name": f"{name}-credentials", "namespace": "team"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": keys}


def read_all(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_their_samples_mount(mounts: Mounts, tmp_path: Path) -> None:
    with ExitStack() as servers:
        (tmp_path / "git").mkdir()
        git = servers.enter_context(http_git(tmp_path / "git"))
        git.repository("owner/repo.git").commit(FILES, branch="master")
        web = servers.enter_context(nginx(tmp_path))
        for path, data in FILES.items():
            web.put(f"train-data/{path}", data)
        models = servers.enter_context(hub())
        models.tokens.add("fake-token")
        models.commit("models", "Owner/Model-medium", FILES)
        models.commit("models", "owner/model_base", FILES, branch="master")
        keys = ["models/README.md", "models/data/part-0.bin"]
        s3 = servers.enter_context(listing_server(keys))

        manifest = write_manifests(
            tmp_path / "samples.yaml",
            sample("git", "GIT", f"{git.url}/owner/repo.git", secret=False, branch="master", depth="1"),
            sample("http", "HTTP", f"{web.url}train-data/", secret=False),
            sample("hugging-face", "HUGGING_FACE", "huggingface://Owner/Model-medium", repoType="model",
                   endpoint=models.url),
            secret_of("hugging-face", token="fake-token"),
            sample("model-scope", "MODEL_SCOPE", "modelscope://owner/model_base", repoType="model",
                   endpoint=models.url),
            secret_of("model-scope", token="fake-token"),
            sample("s3", "S3", "s3://bucket/models/", region="us-east-1", provider="AWS", endpoint=s3.url),
            secret_of("s3", **{"access-key": "fake-key", "secret-key": "fake-secret"}),
        )  # fmt: skip
        mount = mounts.mount("-f", manifest)
        # What a made-up object of this S3 server holds is its key.
        expected: dict[str, Mapping[str, bytes]] = {
            "s3": {key.removeprefix("models/"): key.encode() for key in keys},
            **dict.fromkeys(("git", "http", "hugging-face", "model-scope"), FILES),
        }
        for name, files in expected.items():
            mount.wait_phase("READY", name)
            root = mount.mountpoint / "team" / name
            assert read_all(root) == files, name
            shown = (root / "README.md").stat()
            assert (shown.st_uid, shown.st_gid, stat.S_IMODE(shown.st_mode)) == (1000, 1000, 0o554), name
            assert (root.stat().st_mtime) > 1.7e9, "a time that means something"
        mounts.close_quietly()
