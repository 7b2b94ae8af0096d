"""The chart: rendered by Helm's own engine, validated against what the API servers publish."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import helm_python as helm
import jsonschema
import kubernetes_validate
import pytest
import yaml

from dsfs.manifest.documents import load_documents
from tests.deploy.operator_schemas import SCHEMAS
from tests.mounts import dsfs

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "chart"
OLDEST, NEWEST = "1.26", kubernetes_validate.latest_version()
IMAGE = {"repository": "registry.example.org/dsfs"}

DATASET = """\
apiVersion: dsfs.dev/v1alpha1
kind: Dataset
metadata: {name: imagenet, namespace: vision}
spec: {source: {type: S3, uri: "s3://bucket/imagenet"}, secretRef: imagenet-credentials}
"""

# Every switch of values.yaml at least once, and the combinations that change each other's text.
COMBINATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "digest": {"image": {**IMAGE, "digest": "sha256:" + "0" * 64}, "imagePullSecrets": [{"name": "login"}]},
    "datasets": {"datasets": {"imagenet.yaml": DATASET}},
    "foreign-config-map": {"existingConfigMap": "written-elsewhere"},
    "secrets-and-claims": {
        "secrets": [
            {"secretName": "s3", "as": "vision/imagenet-credentials"},
            {"secretName": "s3", "as": "nlp/corpus"},
        ],
        "claims": [{"claimName": "corpus", "as": "nlp/corpus"}],
    },
    "shared-cache-made": {"sharedCache": {"create": True, "storageClassName": "cephfs", "size": "20Ti"}},
    "shared-cache-there": {"sharedCache": {"existingClaim": "shared"}},
    "pod-monitor": {"monitoring": {"kind": "PodMonitor", "labels": {"release": "prometheus"}}},
    "service-monitor": {"monitoring": {"kind": "ServiceMonitor"}, "http": {"port": 9999}},
    "rules-and-dashboards": {
        "monitoring": {"kind": "PodMonitor", "rules": True, "dashboards": True, "labels": {"release": "prometheus"}}
    },
    "own-names": {
        "serviceAccount": {"create": False, "name": "somebody"},
        "priorityClass": {"create": False, "name": "system-node-critical"},
        "keeper": {"image": "registry.example.org/dsfs:0.0.9", "podAnnotations": {"a": "b"}},
    },
    "nothing-made": {
        "serviceAccount": {"create": False},
        "priorityClass": {"create": False},
        "networkPolicy": {"enabled": False},
    },
    "node-network": {"server": {"hostNetwork": True, "hostPID": True, "readForeignFiles": False}},
    "flags": {
        "namespaces": ["vision", "nlp", "0"],
        "server": {"extraArgs": ["--log-format=json"], "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]},
        "probe": {"path": "data/vision/imagenet/README", "within": "3s"},
    },
    "closed": {
        "networkPolicy": {
            "restrictEgress": True,
            "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 443}]}],
            "metricsFrom": [{"podSelector": {}}],
        }
    },
    "anywhere": {"tolerations": [{"operator": "Exists"}], "nodeSelector": {}, "affinity": {"nodeAffinity": {}}},
    "selinux": {
        name: {"securityContext": {"seLinuxOptions": {"type": "spc_t"}}} for name in ("keeper", "probe", "server")
    },
    "disk": {"cacheSize": "2TiB", "minFree": "100GiB", "server": {"tmpSizeLimit": "20Gi"}},
    "other-places": {"hostPaths": {"root": "/data/dsfs", "run": "/run/x", "cache": "/nvme/dsfs"}, "mount": "sets"},
}


def render(values: dict[str, Any], name: str = "dsfs") -> list[dict[str, Any]]:
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema({"image": IMAGE, **values})
        texts = chart.render({"image": IMAGE, **values}, name=name, namespace="storage")
    documents = [yaml.safe_load_all(text) for path, text in texts.items() if path.endswith(".yaml")]
    return [document for stream in documents for document in stream if document]


def only(documents: list[dict[str, Any]], kind: str, suffix: str = "") -> dict[str, Any]:
    (found,) = [d for d in documents if d["kind"] == kind and d["metadata"]["name"].endswith(suffix)]
    return found


def validate(document: dict[str, Any]) -> None:
    if document["apiVersion"].startswith("monitoring.coreos.com/"):
        jsonschema.validate(document, SCHEMAS[document["kind"]])
        return
    _validate_text(json.dumps(document, sort_keys=True))


@cache  # most documents are the same in most combinations
def _validate_text(text: str) -> None:
    for version in (OLDEST, NEWEST):
        kubernetes_validate.validate(json.loads(text), version, strict=True)


def pods(documents: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for document in documents:
        if document["kind"] == "DaemonSet":
            yield document["spec"]["template"]["spec"]


@pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS.keys())
def test_every_combination_is_valid_and_hangs_together(values: dict[str, Any]) -> None:
    documents = render(values)
    for document in documents:
        validate(document)
    names = [(d["kind"], d["metadata"]["name"]) for d in documents]
    assert len(names) == len(set(names))
    for pod in pods(documents):
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert volumes == mounted  # the API refuses a mount without a volume; a volume without a mount is a slip
        places = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
        assert len(places) == len(set(places))


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"image": {}}, "build deploy/Dockerfile"),
        ({"monitoring": {"kind": "Podmonitor"}}, "kind"),
        ({"hostPath": {"root": "/x"}}, "hostPath"),
        ({"sharedCache": {"create": True, "existingClaim": "both"}}, "sharedCache"),
        ({"secrets": [{"secretName": "s3", "as": "no-namespace"}]}, "as"),
        (
            {"secrets": [{"secretName": name, "as": "vision/s3"} for name in ("a", "b")]},
            "secrets: vision/s3 is there twice",
        ),
        ({"claims": [{"claimName": name, "as": "nlp/c"} for name in ("a", "b")]}, "claims: nlp/c is there twice"),
        ({"namespaces": ["Vision Team"]}, "namespaces"),
        ({"namespaces": ["vision\n- --debug"]}, "namespaces"),
        ({"server": {"securityContext": {"privileged": True}}}, "securityContext"),
        ({"minFree": "a fifth"}, "minFree"),
        ({"server": {"tmpSizeLimit": "much"}}, "tmpSizeLimit"),
        ({"hostPaths": {"root": "relative", "run": "/run/x", "cache": "/c/d"}}, "root"),
    ],
)
def test_wrong_values_are_refused_with_a_word_that_helps(values: dict[str, Any], word: str) -> None:
    with pytest.raises(helm.HelmError) as refusal:
        render(values)
    assert word in str(refusal.value)


def test_the_chart_has_no_lint_error() -> None:
    report = helm.lint(str(CHART), values={"image": IMAGE})
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


def test_an_upgrade_touches_no_keeper_but_rolls_the_servers() -> None:
    before, after = render({}), render({"image": {**IMAGE, "tag": "9.9"}, "datasets": {"a.yaml": DATASET}})
    keeper, server = only(after, "DaemonSet", "keeper"), only(after, "DaemonSet", "server")
    assert keeper["spec"]["updateStrategy"] == {"type": "OnDelete"}
    assert server["spec"]["updateStrategy"]["type"] == "RollingUpdate"
    assert server["spec"]["template"] != only(before, "DaemonSet", "server")["spec"]["template"]
    # A selector cannot be changed by an upgrade, so nothing in it may depend on the version or on values.
    for kind in ("keeper", "server"):
        assert only(before, "DaemonSet", kind)["spec"]["selector"] == only(after, "DaemonSet", kind)["spec"]["selector"]


def test_a_change_of_manifests_rolls_the_servers_only() -> None:
    before, after = render({}), render({"datasets": {"a.yaml": DATASET}})
    assert only(before, "DaemonSet", "keeper") == only(after, "DaemonSet", "keeper")
    assert only(before, "DaemonSet", "server") != only(after, "DaemonSet", "server")


def test_privileges_are_those_that_are_explained() -> None:
    keeper, probe = only(render({}), "DaemonSet", "keeper")["spec"]["template"]["spec"]["containers"]
    (server,) = only(render({}), "DaemonSet", "server")["spec"]["template"]["spec"]["containers"]
    assert keeper["securityContext"]["privileged"] is True  # the API asks for it beside Bidirectional
    assert "privileged" not in server["securityContext"]
    assert server["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["SYS_ADMIN", "DAC_READ_SEARCH"]}
    assert probe["securityContext"]["runAsNonRoot"] is True
    assert probe["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for container in (keeper, probe, server):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["resources"]["limits"]["memory"]
    propagation = {
        container["name"]: mount["mountPropagation"]
        for container in (keeper, probe, server)
        for mount in container["volumeMounts"]
        if "mountPropagation" in mount
    }
    assert propagation == {"keeper": "Bidirectional", "probe": "HostToContainer", "server": "HostToContainer"}
    for pod in pods(render({})):
        assert pod["automountServiceAccountToken"] is False
        assert not pod.get("hostPID")
        assert not pod.get("hostNetwork")
    # Only if that holds for all of its containers is a pod Guaranteed, and the last to be killed when memory runs out.
    for container in (keeper, probe):
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["resources"]["limits"].keys() == {"cpu", "memory"}


def test_what_is_given_for_the_containers_is_added_to_what_the_chart_sets() -> None:
    def contexts(values: dict[str, Any]) -> list[dict[str, Any]]:
        return [container["securityContext"] for pod in pods(render(values)) for container in pod["containers"]]

    added = {"seLinuxOptions": {"type": "spc_t"}}
    assert contexts(COMBINATIONS["selinux"]) == [each | added for each in contexts({})]


def test_the_probe_has_a_process_1_that_ends_and_reaps() -> None:
    _keeper, probe = only(render({}), "DaemonSet", "keeper")["spec"]["template"]["spec"]["containers"]
    assert probe["command"] == ["tini", "--", "sleep", "infinity"]
    installed = re.search(
        r"apt-get install [^&]*\btini\b", (ROOT / "deploy" / "Dockerfile").read_text().rpartition("FROM")[2]
    )
    assert installed, "the image has no tini"


def test_dsfs_gives_way_on_a_full_disk_before_the_kubelet_acts() -> None:
    """Its defaults: images are removed from 85 % used on, pods are evicted at 15 % (imagefs) and 10 % (nodefs) free."""
    (server,) = only(render({}), "DaemonSet", "server")["spec"]["template"]["spec"]["containers"]
    (least,) = [word.removeprefix("--min-free=") for word in server["args"] if word.startswith("--min-free=")]
    assert least == "20%"
    pod = only(render(COMBINATIONS["disk"]), "DaemonSet", "server")["spec"]["template"]["spec"]
    assert {"--cache-size=2TiB", "--min-free=100GiB"} <= set(pod["containers"][0]["args"])
    (tmp,) = [volume for volume in pod["volumes"] if volume["name"] == "tmp"]
    assert tmp["emptyDir"] == {"sizeLimit": "20Gi"}


def test_secrets_are_mounted_where_dsfs_looks_for_them() -> None:
    documents = render(COMBINATIONS["secrets-and-claims"])
    pod = only(documents, "DaemonSet", "server")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    places = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert "--secrets=/etc/dsfs/secrets" in container["args"]
    assert volumes[places["/etc/dsfs/secrets/vision/imagenet-credentials"]]["secret"]["secretName"] == "s3"
    assert volumes[places["/claims/nlp/corpus"]]["persistentVolumeClaim"]["claimName"] == "corpus"
    assert all("subPath" not in mount for mount in container["volumeMounts"])  # a subPath never sees a changed Secret
    text = json.dumps(documents)
    assert not re.search(r'"(value|data)": "[^"]*(password|token)', text)


def test_rules_and_dashboards_are_those_of_the_repository(tmp_path: Path) -> None:
    """The chart has links to them: also an archive of it, which people install, must hold what they lead to."""
    packed = helm.package(str(CHART), destination=str(tmp_path))
    archive = Path(packed if isinstance(packed, str) else next(tmp_path.glob("*.tgz")))
    values = {"image": IMAGE, **COMBINATIONS["rules-and-dashboards"]}
    with helm.Chart.load(str(archive)) as chart:
        texts = chart.render(values, name="dsfs", namespace="storage")
    documents = [
        d for text in texts.values() if "kind:" in text for d in yaml.safe_load_all(text) if isinstance(d, dict)
    ]
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text())
    assert only(documents, "PrometheusRule")["spec"]["groups"] == rules["groups"]
    for file in (ROOT / "deploy" / "grafana").glob("*.json"):
        board = only(documents, "ConfigMap", f"dashboard-{file.stem.lower()}")
        assert json.loads(board["data"][file.name]) == json.loads(file.read_text())
        assert board["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.mark.parametrize("verb", ["keeper", "serve", "probe"])
def test_every_flag_is_one_that_dsfs_has(verb: str) -> None:
    known = set(re.findall(r"--[a-z-]+", dsfs(verb, "--help").stdout))
    used: set[str] = set()
    for values in COMBINATIONS.values():
        for pod in pods(render(values)):
            for container in pod["containers"]:
                probe = container.get("readinessProbe", {}).get("exec", {}).get("command", [])
                for words in (container.get("args", []), probe[1:]):
                    if words[:1] == [verb]:
                        used |= {word.partition("=")[0] for word in words if word.startswith("--")}
    assert used
    assert used <= known


def test_two_releases_do_not_share_a_name() -> None:
    first = {(d["kind"], d["metadata"]["name"]) for d in render({}, name="dsfs")}
    second = {(d["kind"], d["metadata"]["name"]) for d in render({}, name="team-b")}
    assert not first & second


def test_the_plain_manifests_are_what_the_chart_renders() -> None:
    done = subprocess.run([sys.executable, ROOT / "deploy" / "render.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kustomization = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "kustomization.yaml").read_text())
    files = {path.name: path for path in (ROOT / "deploy" / "kubernetes").glob("*.yaml")}
    del files["kustomization.yaml"]  # kubectl's own, no schema is published
    # A ConfigMap of kustomize's own has a digest of what it says in its name, so that another one rolls the servers.
    assert kustomization["configMapGenerator"] == [{"name": "dsfs-datasets", "files": ["datasets.yaml"]}]
    assert load_documents([str(files.pop("datasets.yaml"))]).manifests == ()
    assert set(kustomization["resources"]) == files.keys()
    documents = [document for path in files.values() for document in yaml.safe_load_all(path.read_text())]
    for document in documents:
        validate(document)
    server = next(
        each for each in documents if (each["kind"], each["metadata"]["name"]) == ("DaemonSet", "dsfs-server")
    )
    volumes = server["spec"]["template"]["spec"]["volumes"]
    assert {"name": "dsfs-datasets"} in [volume.get("configMap") for volume in volumes]


EXAMPLES = sorted((ROOT / "deploy" / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_valid(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        validate(document)


def waits_where_it_has_to(pod: dict[str, Any]) -> bool:
    """These directories are on the node's disk also while nothing is mounted, so their type makes no pod wait."""
    there = {v["name"] for v in pod["volumes"] if v.get("hostPath", {}).get("path") in ("/mnt/dsfs", "/mnt/dsfs/data")}
    first = [mount for container in pod.get("initContainers", []) for mount in container["volumeMounts"]]
    mounts = [mount for container in pod["containers"] for mount in container["volumeMounts"]]
    return all(mount in first for mount in mounts if mount["name"] in there)


def test_examples_that_could_start_before_dsfs_wait_for_their_dataset() -> None:
    found = [
        document["spec"]["template"]["spec"]
        for path in EXAMPLES
        for document in yaml.safe_load_all(path.read_text())
        if "template" in document.get("spec", {})
    ]
    readme = (ROOT / "README.md").read_text()
    lines = [line for line in readme.splitlines() if line.startswith("    ")]
    start = lines.index(next(line for line in lines if line.startswith("    volumes: ")))
    snippet = yaml.safe_load("\n".join(lines[start : start + 7]))
    mounts = snippet.pop("volumeMounts")
    assert list(snippet) == ["volumes", "initContainers"]
    pod = {**snippet, "containers": [{"name": "job", "image": "job", "volumeMounts": mounts}]}
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "job"}, "spec": pod})
    assert len(found) == 3
    assert all(waits_where_it_has_to(each) for each in (*found, pod))


def test_the_order_in_which_dsfs_is_removed_is_told_with_names_that_there_are() -> None:
    """A keeper that ends while its server runs leaves the mount to it; Helm would end both at once."""
    server = only(render({}), "DaemonSet", "server")["metadata"]["name"]
    command = f"delete daemonset {server} --cascade=foreground"
    readme = (ROOT / "README.md").read_text()
    with helm.Chart.load(str(CHART)) as chart:
        texts = chart.render({"image": IMAGE}, name="dsfs", namespace="dsfs")
    (notes,) = [text for path, text in texts.items() if path.endswith("NOTES.txt")]
    for text in (readme, notes):
        assert f"    kubectl -n dsfs {command}" in text
        assert text.index(command) < text.index("helm uninstall dsfs --namespace dsfs")
