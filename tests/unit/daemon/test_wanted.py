"""What one server hands to the next, and which mount ``dsfs verify`` means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon import running
from daemon.building import Builder
from daemon.cli.cache import _user_of
from daemon.settings import Settings
from daemon.wanted import HANDED_OVER, read_wanted, to_text
from dsfs.manifest.documents import parse_documents

MANIFEST = """
{{apiVersion: {version}, kind: Dataset, metadata: {{name: data, namespace: a}},
 spec: {{source: {{type: GIT, uri: "https://host/repo.git", options: {{whatever: kept}}}}}}}}
"""


@pytest.mark.parametrize("version", ["dsfs.dev/v1alpha1", "dataset.baizeai.io/v1alpha1"])
def test_what_is_handed_over_is_what_was_read(version: str, tmp_path: Path) -> None:
    documents = parse_documents(MANIFEST.format(version=version), "m.yaml")
    settings = Settings("/data", str(tmp_path), str(tmp_path))
    text = to_text(documents)
    assert read_wanted(settings, {HANDED_OVER: text}).manifests == documents.manifests
    handed_over = json.loads(text)
    assert "api_version" not in handed_over["manifests"][0], "a version without that field takes over too"
    del handed_over["forms"]
    (before,) = read_wanted(settings, {HANDED_OVER: json.dumps(handed_over)}).manifests
    assert before.api_version == "dsfs.dev/v1alpha1", "from a version without it"


def test_labels_of_namespaces_are_handed_over(tmp_path: Path) -> None:
    shared = MANIFEST.format(version="dsfs.dev/v1alpha1").replace(
        "{source", "{share: true, shareToNamespaceSelector: {matchLabels: {team: nlp}}, source"
    )
    namespace = "{apiVersion: v1, kind: Namespace, metadata: {name: b, labels: {team: nlp}}}"
    documents = parse_documents(f"{shared}\n---\n{namespace}", "m.yaml")
    text = to_text(documents)
    for namespaces, seen in ((("b",), documents.manifests), (("c",), ())):
        settings = Settings("/data", str(tmp_path), str(tmp_path), namespaces=namespaces)
        wanted = read_wanted(settings, {HANDED_OVER: text})
        assert (wanted.manifests, wanted.labels) == (seen, {"b": {"team": "nlp"}})
    assert "labels" not in json.loads(to_text(parse_documents(shared, "m.yaml"))), "as a version without them wrote it"


CONFIG = """
{apiVersion: v1, kind: ConfigMap, metadata: {name: conf, namespace: a},
 data: {core.xml: "<c><property><name>fs.defaultFS</name><value>hdfs://nn:8020</value></property></c>"}}
---
"""
HADOOP = """{apiVersion: dsfs.dev/v1alpha1, kind: Dataset, metadata: {name: data, namespace: a},
 spec: {source: {type: HADOOP, uri: "hdfs://", options: {hdfsConfigName: conf, coreSiteXml: core.xml}}}}"""


def test_config_maps_are_handed_over_and_used_where_a_dataset_alone_is_applied(tmp_path: Path) -> None:
    documents = parse_documents(CONFIG + HADOOP, "m.yaml")
    settings = Settings("/data", str(tmp_path), str(tmp_path))
    alone = parse_documents(HADOOP, "n.yaml")
    builder = Builder(settings, read_wanted(settings, {HANDED_OVER: to_text(documents)}))
    assert builder.with_known_configs(alone).manifests == documents.manifests != alone.manifests
    assert "configs" not in json.loads(to_text(alone)), "as a version without them wrote it"
    other = parse_documents(HADOOP.replace("name: conf", "name: b").replace("Name: conf", "Name: other"), "n.yaml")
    assert builder.with_known_configs(other).manifests == other.manifests
    changed = parse_documents(CONFIG.replace("nn:8020", "other:8020") + HADOOP, "m.yaml")
    assert builder.with_known_configs(changed).manifests == changed.manifests, "what comes with it is newer"
    builder.add_configs(changed.configs)
    assert builder.with_known_configs(alone).manifests == changed.manifests


def test_what_is_passed_over_is_in_the_log(tmp_path: Path) -> None:
    claim = "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: claim}}"
    file = tmp_path / "m.yaml"
    file.write_text(f"{claim}\n---{MANIFEST.format(version='dsfs.dev/v1alpha1')}")
    settings = Settings("/data", str(tmp_path), str(tmp_path), manifest_paths=(str(file),))
    with capture_logs() as logged:
        assert [manifest.id for manifest in read_wanted(settings, {}).manifests] == ["a/data"]
    (line,) = logged
    assert line["log_level"] == "warning"
    assert line["reason"].startswith(f"{file}: document 1: kind PersistentVolumeClaim is passed over")


def test_verify_without_a_cache_directory_means_the_only_mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def mount(name: str, cache_dir: Path, *, alive: bool = True) -> running.Running:
        runtime_dir = tmp_path / name
        runtime_dir.mkdir()
        Settings(f"/{name}", str(runtime_dir), str(cache_dir)).save()
        return running.Running(str(runtime_dir), f"/{name}", 1, alive, "")

    (tmp_path / "link").symlink_to(tmp_path / "cache")
    mounts = [mount("ended", tmp_path / "cache", alive=False), mount("first", tmp_path / "link")]
    monkeypatch.setattr(running, "all_mounts", lambda: mounts)
    assert _user_of(None) is mounts[1]
    assert _user_of(str(tmp_path / "cache")) is mounts[1]
    assert _user_of(str(tmp_path / "another")) is None
    mounts.append(mount("second", tmp_path / "another"))
    assert _user_of(None) is None, "several: it is the default directory that is meant"
    assert _user_of(str(tmp_path / "another")) is mounts[2]
    (tmp_path / "first/settings.json").write_text('{"mountp')
    assert _user_of(str(tmp_path / "another")) is mounts[2], "one that just starts or ends says nothing"
