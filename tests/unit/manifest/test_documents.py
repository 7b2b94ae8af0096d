"""Files and directories of manifests in our own form: what they mean, and what is said about those that are wrong."""

from __future__ import annotations

import base64
import copy
import json
from xml.sax.saxutils import escape

import pytest
import yaml

from dsfs.errors import ConfigError
from dsfs.manifest.documents import document_of, load_documents, parse_documents
from dsfs.manifest.schema import CacheOptions, Manifest, MountOptions, Preheat, SourceSpec, SourceType
from dsfs.model import ReadPath
from dsfs.sources.hadoop_address import hdfs_address

FULL = """
apiVersion: dsfs.dev/v1alpha1
kind: Dataset
metadata: {name: imagenet, namespace: vision, labels: {team: a}, annotations: {why: "x"}, uid: 1-2}
spec:
  source:
    type: S3
    uri: s3://bucket/prefix
    options: {endpoint: "http://127.0.0.1:9000", region: us-east-1}
  secretRef: imagenet-credentials
  share: true
  shareToNamespaceSelector:
    matchLabels: {team: a}
    matchExpressions: [{key: stage, operator: In, values: [dev, test]}, {key: old, operator: DoesNotExist}]
  mountOptions: {uid: 1001, gid: 0, mode: "0750", path: data/train}
  dataSyncRound: 3
  preheat: required
  readPath: openless
  cache: {quota: 500GiB, priority: -2}
status: {phase: READY}
"""
SMALL = {
    "apiVersion": "dsfs.dev/v1alpha1",
    "kind": "Dataset",
    "metadata": {"name": "a"},
    "spec": {"source": {"type": "S3", "uri": "s3://bucket"}},
}


def small(path="", value=None, **metadata):
    """SMALL with one field, named by its path, set or (None) taken out."""
    document = copy.deepcopy(SMALL)
    document["metadata"].update(metadata)
    if path:
        *parents, last = path.split(".")
        inside = document
        for parent in parents:
            inside = inside.setdefault(parent, {})
        inside[last] = value
    return document


def read(*documents):
    return parse_documents("---\n".join(d if isinstance(d, str) else yaml.safe_dump(d) for d in documents), "f.yaml")


def line(*documents):
    """The one line that is said about documents that are wrong."""
    with pytest.raises(ConfigError) as caught:
        read(*documents)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_every_field_of_the_contract():
    assert read(FULL).manifests == (
        Manifest(
            namespace="vision",
            name="imagenet",
            source=SourceSpec(
                type=SourceType.S3,
                uri="s3://bucket/prefix",
                options={"endpoint": "http://127.0.0.1:9000", "region": "us-east-1"},
            ),
            secret_ref="imagenet-credentials",
            share=True,
            share_to_namespace_selector={
                "matchLabels": {"team": "a"},
                "matchExpressions": [
                    {"key": "stage", "operator": "In", "values": ["dev", "test"]},
                    {"key": "old", "operator": "DoesNotExist"},
                ],
            },
            mount_options=MountOptions(path="data/train", uid=1001, gid=0, mode="0750"),
            data_sync_round=3,
            preheat=Preheat.REQUIRED,
            read_path=ReadPath.OPENLESS,
            cache=CacheOptions(quota=500 * 2**30, priority=-2),
        ),
    )


def test_defaults():
    (manifest,) = read(SMALL).manifests
    assert manifest.id == "default/a"
    assert manifest.mount_options == MountOptions(path="/", uid=None, gid=None, mode="0755")
    assert (manifest.share, manifest.share_to_namespace_selector, manifest.secret_ref) == (False, None, None)
    assert (manifest.data_sync_round, manifest.preheat, manifest.read_path) == (1, Preheat.NONE, ReadPath.AUTO)


def test_null_and_an_empty_secret_name_mean_absent():
    document = small("spec.cache", {"quota": None})
    document["spec"].update(secretRef="", mountOptions=None, shareToNamespaceSelector=None, preheat=None)
    document["spec"]["source"]["options"] = None
    assert read(document) == read(SMALL)


def test_an_empty_selector_is_not_no_selector():
    (manifest,) = read(small("spec.shareToNamespaceSelector", {})).manifests
    assert manifest.share_to_namespace_selector == {}


def test_what_baize_keeps_for_volumes_is_accepted_here_too():
    document = small("spec.volumeClaimTemplate", {"spec": {"storageClassName": "x"}})
    document["spec"].update(volumeClaimRef={"name": "claim", "subPath": "a"}, resources={"limits": {"cpu": 1}})
    assert read(document) == read(SMALL)


def test_options_and_mode_are_text_as_it_was_written():
    (manifest,) = read(
        """
apiVersion: dsfs.dev/v1alpha1
kind: Dataset
metadata: {name: a}
spec:
  source: {type: GIT, uri: "https://h/r", options: {commit: 0123456, version: 4.10, depth: 1, lfs: no, day: 2024-01-02}}
  mountOptions: {mode: 0640}
"""
    ).manifests
    assert manifest.source.options == {
        "commit": "0123456",
        "version": "4.10",
        "depth": "1",
        "lfs": "no",
        "day": "2024-01-02",
    }
    assert manifest.mount_options.mode_bits == 0o640


@pytest.mark.parametrize(("quota", "size_bytes"), [("10GB", 10**10), (4096, 4096), ("4096", 4096)])
def test_quota(quota, size_bytes):
    assert read(small("spec.cache.quota", quota)).manifests[0].cache.quota == size_bytes


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("spec.source.type", "S4", "field spec.source.type: must be one of S3, HTTP, GIT, NFS, PVC, "),
        ("spec.source.uri", None, "field spec.source.uri: is missing"),
        ("spec.source.uri", "", "field spec.source.uri: is empty"),
        ("spec.source.uri", "s3://a\nb", "field spec.source.uri: holds a control character"),
        ("spec.source.uri", 5, "field spec.source.uri: must be text"),
        ("spec.source.options", ["a"], "field spec.source.options: must be a mapping"),
        ("spec.source.options.a", ["a"], "field spec.source.options.a: must be text"),
        ("spec.source.optoins", {}, "field spec.source.optoins: is not a known field (did you mean options?)"),
        ("spec.source", "s3://a", "field spec.source: must be a mapping"),
        ("spec.secret_ref", "a", "field spec.secret_ref: is not a known field (did you mean secretRef?)"),
        ("spec.secretRef", "../a", "field spec.secretRef: must be the name of a Secret"),
        ("spec.share", "yes", "field spec.share: must be true or false"),
        ("spec.zzz", 1, "field spec.zzz: is not a known field (known: cache, dataSyncRound, mountOptions, "),
        ("spec.dataSyncRound", 0, "field spec.dataSyncRound: must be at least 1"),
        ("spec.dataSyncRound", True, "field spec.dataSyncRound: must be a whole number"),
        ("spec.preheat", "all", "field spec.preheat: must be one of none, background, required"),
        ("spec.readPath", "x", "field spec.readPath: must be one of auto, passthrough, openless, daemon"),
        (
            "spec.cache.quota",
            "5 gigs",
            "field spec.cache.quota: is not a size (write bytes, or a number and a unit such",
        ),
        ("spec.cache.quota", [], "field spec.cache.quota: must be a size"),
        ("spec.cache.quotas", 1, "field spec.cache.quotas: is not a known field (did you mean quota?)"),
        ("spec.mountOptions.mode", "rwx", "field spec.mountOptions.mode: must be 3 or 4 octal digits"),
        ("spec.mountOptions.mode", "0755\n", "field spec.mountOptions.mode: must be 3 or 4 octal digits"),
        ("spec.mountOptions.uid", -1, "field spec.mountOptions.uid: must be at least 0"),
        ("spec.mountOptions.gid", 2**32 - 1, "field spec.mountOptions.gid: must be at most 4294967294"),
        ("spec.mountOptions.path", "../up", "field spec.mountOptions.path: must be a directory"),
        ("spec.shareToNamespaceSelector", {"matchLables": {}}, "(did you mean matchLabels?)"),
        (
            "spec.shareToNamespaceSelector",
            {"matchExpressions": [{"key": "a", "operator": "Is"}]},
            "field spec.shareToNamespaceSelector.matchExpressions[0].operator: must be one of In, NotIn, ",
        ),
        ("spec", None, "field spec: is missing"),
        ("spec", [], "field spec: must be a mapping"),
        ("metadata", None, "field metadata.name: is missing"),
        ("metadata.name", 5, "field metadata.name: must be text (put it in quotes)"),
        ("metadata.namespace", "a.b", "field metadata.namespace: may hold"),
        ("metadata.namespace", "n" * 64, "field metadata.namespace: is longer than 63 characters"),
        ("kind", None, "field kind: is missing"),
        ("kind", "Deployment", "field kind: Deployment is not known here"),
        ("apiVersion", "dsfs.dev/v9", "must be one of dsfs.dev/v1alpha1, dataset.baizeai.io/v1alpha1"),
        ("sepc", {}, "field sepc: is not a known field"),
    ],
)
def test_a_mistake_is_named_in_one_line(path, value, expected):
    said = line(SMALL | {"metadata": {"name": "fine"}}, small(path, value))
    assert said.startswith("f.yaml: document 2: ")
    assert expected in said


@pytest.mark.parametrize("name", ["a/b", "..", ".a", "a-", "A", "a_b", "", "a\n", "n" * 254, "n" * 300, "ä"])
def test_a_name_that_cannot_be_a_path_name(name):
    assert "field metadata.name: " in line(small(name=name))


@pytest.mark.parametrize("name", ["a", "0", "a.b-c", "n" * 253, "llama-3.1"])
def test_a_name_that_can(name):
    assert read(small(name=name)).manifests[0].name == name


def test_several_mistakes_are_counted():
    document = small("spec.zzz", 1)
    document["spec"]["preheat"] = "x"
    assert line(document).endswith("[and 1 more]")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.source.uri", "s3://user:hunter2@host/x"),
        ("spec.source.uri", "https://host/x?X-Amz-Signature=hunter2"),
        ("spec.source.options", {"secret-key": "hunter2"}),
        ("spec.source.options", {"Authorization": "Bearer hunter2"}),
        ("spec.source.options", {"Cookie": "hunter2"}),
        ("spec.source.options", {"endpoint": "http://u:hunter2@host"}),
    ],
)
@pytest.mark.parametrize("api_version", ["dsfs.dev/v1alpha1", "dataset.baizeai.io/v1alpha1"])
def test_a_credential_in_a_manifest_is_refused_and_not_shown(path, value, api_version):
    said = line(small(path, value) | {"apiVersion": api_version})
    assert f"field {path}: " in said
    assert "secretRef" in said
    assert "hunter2" not in said


def test_documents_lists_and_empty_ones():
    inside = {"apiVersion": "v1", "kind": "List", "metadata": {}, "items": [small(name="b"), small(name="c")]}
    found = read("\n", SMALL, "# nothing\n", inside)
    assert [manifest.name for manifest in found.manifests] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "foreign",
    [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": "b"}},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "a"}, "spec": {}},
        {"apiVersion": "apps/v1", "kind": "Deployment"},
    ],
)
def test_what_is_for_others_is_passed_over_and_told(foreign):
    found = read(foreign, SMALL, {"apiVersion": "v1", "kind": "List", "items": [foreign, small(name="b")]})
    assert [manifest.name for manifest in found.manifests] == ["a", "b"]
    told = f"kind {foreign['kind']} is passed over (it means nothing to dsfs)"
    assert found.passed_over == (f"f.yaml: document 1: {told}", f"f.yaml: document 3: item 1: {told}")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"apiVersion": "dsfs.dev/v1alpha1", "kind": "Datset"}, "field kind: Datset is not known here"),
        ({"apiVersion": "dsfs.dev/v2", "kind": "DataSet"}, "field kind: DataSet is not known here"),
        ({"apiVersion": "dataset.baizeai.io/v1alpha1", "kind": "Datset"}, "field kind: Datset is not known here"),
        ({"apiVersion": "data.fluid.io/v1alpha1", "kind": "Dataset"}, "field apiVersion: must be one of"),
        ({"kind": "Dataset"}, "field apiVersion: is missing"),
        ({"kind": "ConfigMap"}, "field apiVersion: is missing"),
        ({"apiVersion": "v1"}, "field kind: is missing"),
        ({"apiVersion": "v1", "kind": ""}, "field kind:  is not known here"),
        ({"apiVersion": "v1", "kind": "secret"}, "field kind: secret is not known here"),
        ({"apiVersion": "v1", "kind": "list", "items": []}, "field kind: list is not known here"),
    ],
)
def test_what_could_be_ours_is_not_passed_over(document, expected):
    said = line(SMALL, document | {"metadata": {"name": "b"}, "spec": small()["spec"]})
    assert said.startswith(f"f.yaml: document 2: {expected}")


def test_a_list_as_the_api_server_gives_it():
    inside = {"apiVersion": "dataset.baizeai.io/v1alpha1", "kind": "DatasetList", "metadata": {"resourceVersion": "7"}}
    found = read(inside | {"items": [small(name="b"), small(name="c")]})
    assert [manifest.name for manifest in found.manifests] == ["b", "c"]
    said = line({"kind": "List", "items": [inside | {"items": []}]})
    assert said == "f.yaml: document 1: item 1: must be an object, and no List"


@pytest.mark.parametrize("items", [None, {}, [1], [{"kind": "List", "items": []}]])
def test_a_list_that_is_none(items):
    assert line({"apiVersion": "v1", "kind": "List", "items": items}).startswith("f.yaml: document 1: ")


def test_a_mistake_in_a_list_names_the_item():
    said = line({"kind": "List", "items": [SMALL, small("spec.preheat", "x")]})
    assert said.startswith("f.yaml: document 1: item 2: field spec.preheat: ")


def test_two_of_one_name_name_both_places():
    said = line(SMALL, small(name="b"), small(namespace="default"))
    assert said.startswith("f.yaml: document 3: ")
    assert "default/a is already in f.yaml: document 1" in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: [", "line 2, column 5"),
        ("a: 1\na: 2", "line 2, column 1: the key a stands twice"),
        ("spec:\n  b: {c: 1, c: 2}", "line 2, column 13: the key c stands twice"),
        ("a: 2024-13-41", "line 1, column 4"),
        ("a: !!python/object:os.system {}", "line 1, column 4"),
        ("a: \x01", "line 1, column 4"),
        ("a: *hunter2", "line 1, column 4"),
        ("a: !hunter2 b", "line 1, column 4"),
        ("%hunter2 x", "line 1"),
        ("[" * 20000, "nested too deeply"),
        ("hunter2", "document 1: must be a mapping"),
        ("- hunter2", "document 1: must be a mapping"),
    ],
)
def test_yaml_that_is_none(text, expected):
    said = line(text)
    assert said.startswith("f.yaml: ")
    assert expected in said
    assert "hunter2" not in said


def test_merged_keys_may_be_overridden():
    text = """
x: &x {type: S3, uri: "s3://a"}
---
kind: List
items:
- apiVersion: dsfs.dev/v1alpha1
  kind: Dataset
  metadata: {name: a}
  spec: {source: &s {type: S3, uri: "s3://a"}}
- apiVersion: dsfs.dev/v1alpha1
  kind: Dataset
  metadata: {name: b}
  spec: {source: &t {<<: *s, uri: "s3://b"}}
- apiVersion: dsfs.dev/v1alpha1
  kind: Dataset
  metadata: {name: c}
  spec: {source: {<<: *t, uri: "s3://c"}}
"""
    found = read(text.split("---\n")[1])
    assert [manifest.source.uri for manifest in found.manifests] == ["s3://a", "s3://b", "s3://c"]


def secret(name="creds", **rest):
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, **rest}


def test_secrets():
    coded = base64.encodebytes(b"  AKID\n" * 20).decode()
    found = read(
        secret(data={"access-key": coded, "username": "YQ==", "bin": "/w=="}, stringData={"username": " bob\n"}),
        secret("empty", type="Opaque", immutable=True),
        "{apiVersion: v1, kind: Secret, metadata: {name: n, namespace: team}, stringData: {password: 0123}}",
    ).secrets
    assert found["default", "creds"]["access-key"].startswith("AKID")
    assert found["default", "creds"]["username"] == "bob"
    assert found["default", "creds"]["bin"].encode("utf-8", "surrogateescape") == b"\xff"
    assert found["default", "empty"] == {}
    assert found["team", "n"] == {"password": "0123"}


def hadoop(name="h", namespace="default", **options):
    source = {"type": "HADOOP", "uri": "hdfs://", "options": options}
    return small("spec.source", source, name=name, namespace=namespace)


def config_map(name="conf", **data):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


NAMED = {"hdfsConfigName": "conf", "coreSiteXml": "core-site.xml", "hdfsSiteXml": "hdfs-site.xml"}
CORE = "<configuration><property><name>fs.defaultFS</name><value>hdfs://nn:8020</value></property></configuration>"
SITE = "<c><property><name>dfs.namenode.http-address</name><value>nn:9870</value></property></c>"


@pytest.mark.parametrize("api_version", ["dsfs.dev/v1alpha1", "dataset.baizeai.io/v1alpha1"])
def test_hadoop_s_configuration_is_in_a_config_map(api_version):
    texts = config_map(**{"core-site.xml": f"\n{CORE}\n", "hdfs-site.xml": SITE, "other": "x"})
    found = read(texts, config_map("others"), hadoop(**NAMED) | {"apiVersion": api_version}, hadoop("n", "n", **NAMED))
    address, elsewhere = (hdfs_address(m.source.uri, m.source.options, {}, {}) for m in found.manifests)
    assert (address.namenode, address.webhdfs) == ("hdfs://nn:8020", ("http://nn:9870",))
    assert (elsewhere.namenode, elsewhere.webhdfs) == ("", ()), "that namespace has no such ConfigMap"
    assert found.manifests[1].source.options == NAMED
    assert found.passed_over == ("f.yaml: document 2: kind ConfigMap is passed over (it means nothing to dsfs)",)


@pytest.mark.parametrize(
    ("options", "data", "kept"),
    [
        (NAMED, {"core-site.xml": CORE}, NAMED | {"coreSiteXml": CORE}),
        (NAMED, None, NAMED),
        ({"hdfsConfigName": "conf"}, {"core-site.xml": CORE}, {"hdfsConfigName": "conf"}),
        (NAMED | {"coreSiteXml": SITE}, {"core-site.xml": CORE}, NAMED | {"coreSiteXml": SITE}),
    ],
)
def test_what_no_key_of_the_config_map_has_stays_as_it_is(options, data, kept):
    (manifest,) = read(hadoop(**options), config_map() | {"data": data}).manifests
    assert manifest.source.options == kept


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", "https://u:hunter2@h/"),
        ("fs.s3a.secret.key", "hunter2"),
        ("fs.s3a.endpoint", "https://h/"),
        ("hadoop.security.group.mapping.ldap.bind.password", "hunter2"),
        ("hadoop.security.group.mapping.ldap.url", "ldap://u:hunter2@h/"),
        ("hadoop.zk.auth", "digest:u:hunter2"),
        ("dfs.x", "http://h:1/ https://u:hunter2@h/"),
    ],
)
def test_of_a_config_map_what_the_address_needs_is_taken_and_no_credential(name, value):
    """The file is the whole cluster's, and options are shown."""
    other = f"<!-- hunter2 --><property><name>{name}</name><value>{value}</value></property>"
    text = CORE.replace("<property>", f"{other}<property>", 1)
    (manifest,) = read(config_map(**{"core-site.xml": text}), hadoop(**NAMED)).manifests
    assert manifest.source.options == NAMED | {"coreSiteXml": CORE}


def test_what_names_hosts_and_their_protection_is_taken_from_a_config_map():
    known = {"fs.defaultFS": "hdfs://a", "dfs.nameservices": "a", "hadoop.rpc.protection": "privacy", "dfs.x": "<&>"}
    text = "".join(f"<property><name>{k}</name><value>{escape(v)}</value></property>" for k, v in known.items())
    (manifest,) = read(config_map(**{"core-site.xml": f"<c>{text}</c>"}), hadoop(**NAMED)).manifests
    assert hdfs_address(manifest.source.uri, manifest.source.options, {}, {}).settings == known


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<c>hunter2", "is not XML"),
        ("password=hunter2", "is not XML"),
        ("<!DOCTYPE c><c>hunter2</c>", "has a DOCTYPE or entities (leave them out, Hadoop files need none)"),
    ],
)
def test_a_file_in_a_config_map_that_cannot_be_read_is_told(text, why):
    said = line(config_map(**{"hdfs-site.xml": text}), hadoop(**NAMED))
    told = f"hdfsSiteXml {why}, in the ConfigMap that hdfsConfigName names"
    assert said == f"f.yaml: document 2: field spec.source.options: {told}"
    (manifest,) = read(config_map(other=text, **{"hdfs-site.xml": "\n"}), hadoop(**NAMED)).manifests
    assert manifest.source.options == NAMED, "an empty file, and one that is not named"


def namespace(name="nlp", **metadata):
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, **metadata}, "spec": {}}


def test_labels_of_namespaces():
    found = read(namespace(labels={"team": "a", "tier": ""}, annotations={"x": "y"}), namespace("b", labels={}), SMALL)
    assert found.labels == {"nlp": {"team": "a", "tier": ""}, "b": {}}
    assert found.passed_over == ()


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (namespace() | {"apiVersion": "v2"}, "field apiVersion: must be v1 for a Namespace"),
        (namespace("a.b"), "field metadata.name: may hold"),
        (namespace(None), "field metadata.name: is missing"),
        (namespace() | {"metadata": None}, "field metadata.name: is missing"),
        (namespace(labels=["a"]), "field metadata.labels: must be a mapping"),
        (namespace(labels={"a": 1}), "field metadata.labels: must be text, keys and values (put it in quotes)"),
        (namespace("first", labels={"a": "c"}), "field metadata.name: first is already in f.yaml: document 1"),
    ],
)
def test_a_namespace_that_is_none(document, expected):
    assert line(namespace("first", labels={"a": "b"}), document).startswith(f"f.yaml: document 2: {expected}")


def test_a_namespace_that_several_files_create():
    labelled = namespace(labels={"team": "a"})
    assert read(namespace(), labelled, labelled, namespace(labels=None)).labels == {"nlp": {"team": "a"}}
    assert read(namespace(), namespace()).labels == {}, "which says nothing of labels, and not that there are none"


def test_secrets_are_not_in_the_repr():
    assert "hunter2" not in repr(read(secret(stringData={"password": "hunter2"})))


@pytest.mark.parametrize(
    "document",
    [
        secret(data={"password": "hunter2!"}),
        secret(data={"password": "hunter2é"}),
        secret(data=["hunter2"]),
        secret(stringData={"password": ["hunter2"]}),
        secret(stringData={5: "hunter2"}),
        secret("a/b", stringData={"password": "hunter2"}),
        secret(stringData={"password": "hunter2"}) | {"apiVersion": "v2"},
        "{apiVersion: v1, kind: Secret, metadata: {name: a}, stringData: {password: hunter2, password: hunter2}}",
        "{apiVersion: v1, kind: Secret, metadata: {name: a}, stringData: {password: hunter2]}",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData:\n  password: 'hunter2\n",
        "apiVersion: v1\nkind: Secret\nstringData:\n\tpassword: hunter2\n",
        "apiVersion: v1\nkind: Secret\nstringData:\n  password: @hunter2\n",
    ],
)
def test_a_secret_that_is_wrong_is_never_shown(document):
    with pytest.raises(ConfigError) as caught:
        read(document)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_two_secrets_of_one_name():
    assert "default/creds is already in" in line(secret(), secret())


def test_json_with_tabs_and_several_objects(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(SMALL, indent="\t") + "\n" + json.dumps(small(name="b")))
    assert [manifest.name for manifest in load_documents([str(file)]).manifests] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1,\n "a": 2}', "the key a stands twice"),
        ('{"a": 1,\n b}', "line 2, column 2"),
        ("[" * 200_000, "nested too deeply"),
        ("1" * 5000, "a number is too long"),
        ('{"kind": "\\ud800"}', "document 1: field kind: "),
    ],
)
def test_json_that_is_none(tmp_path, text, expected):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_documents([str(file)])
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_directory_is_read_in_order_and_not_deeper(tmp_path):
    for file, name in [("2.yml", "b"), ("1.yaml", "a"), ("3.json", "c")]:
        (tmp_path / file).write_text(json.dumps(small(name=name)))
    for ignored in [".hidden.yaml", "README.md", "x.yaml.bak"]:
        (tmp_path / ignored).write_text("{")
    (tmp_path / "deeper.yaml").mkdir()
    (tmp_path / "deeper.yaml" / "4.yaml").write_text("{")
    found = load_documents([str(tmp_path), str(tmp_path / "1.yaml")])  # named twice, read once
    assert [manifest.name for manifest in found.manifests] == ["a", "b", "c"]


def test_two_files_with_one_name(tmp_path):
    for file in ["1.yaml", "2.yaml"]:
        (tmp_path / file).write_text(json.dumps(SMALL))
    with pytest.raises(ConfigError) as caught:
        load_documents([str(tmp_path)])
    assert str(caught.value).startswith(f"{tmp_path}/2.yaml: document 1: ")
    assert f"{tmp_path}/1.yaml: document 1" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff")
    (tmp_path / "empty").mkdir()
    for path, expected in [
        ("none.yaml", "none.yaml: cannot be read: No such file or directory"),
        ("li\nne", "li\\nne: cannot be read"),
        ("bytes.yaml", "bytes.yaml: is not UTF-8 text"),
        ("empty", "empty: has no manifests"),
    ]:
        with pytest.raises(ConfigError, match=r"^.*$") as caught:
            load_documents([str(tmp_path / path)])
        assert expected in str(caught.value)


def test_what_is_for_others_alone_is_another_file_than_was_meant(tmp_path):
    file = tmp_path / "d.yaml"
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
    file.write_text(yaml.safe_dump_all([{"apiVersion": "apps/v1", "kind": "Deployment"}, claim, namespace()]))
    with pytest.raises(ConfigError) as caught:
        load_documents([str(file)])
    told = "document 1: kind Deployment is passed over (it means nothing to dsfs) [and 1 more]"
    assert str(caught.value) == f"{file}: {told}, and nothing that is known here is there"
    assert load_documents([str(file)], none_yet=True).manifests == (), "others may yet put some there"
    for ours in (small(), secret(), namespace(labels={"a": "b"})):
        file.write_text(yaml.safe_dump_all([claim, ours]))
        assert len(load_documents([str(file)]).passed_over) == 1


def test_a_directory_that_has_none_yet(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/README.md").write_text("put them here")
    assert load_documents([str(tmp_path / "empty")], none_yet=True).manifests == ()
    with pytest.raises(ConfigError, match="none: cannot be read"):
        load_documents([str(tmp_path / "none")], none_yet=True)


def test_nothing_at_all(tmp_path):
    (tmp_path / "a.yaml").write_text("")
    assert load_documents([str(tmp_path / "a.yaml")]).manifests == ()


def test_a_byte_order_mark_is_no_character(tmp_path):
    (tmp_path / "a.yaml").write_text("\ufeff" + json.dumps(SMALL), encoding="utf-8")
    assert len(load_documents([str(tmp_path / "a.yaml")]).manifests) == 1


@pytest.mark.parametrize("api_version", ["dsfs.dev/v1alpha1", "dataset.baizeai.io/v1alpha1"])
def test_a_manifest_says_the_same_when_it_is_written_down(api_version):
    own = {
        "preheat": "required",
        "readPath": "daemon",
        "cache": {"quota": "5GiB", "priority": -3},
        "syncInterval": "90s",
    }
    spec = {
        "source": {"type": "S3", "uri": "s3://bucket/a b", "options": {"region": "x", "other": "y"}},
        "secretRef": "keys",
        "share": True,
        "shareToNamespaceSelector": {"matchExpressions": [{"key": "team", "operator": "Exists"}]},
        "mountOptions": {"path": "/sub", "uid": 5, "gid": 0, "mode": "0750"},
        "dataSyncRound": 7,
        **(own if api_version.startswith("dsfs") else {}),
    }
    document = {
        "apiVersion": api_version,
        "kind": "Dataset",
        "metadata": {"name": "data", "namespace": "team"},
        "spec": spec,
    }
    (manifest,) = parse_documents(json.dumps(document), "f.json").manifests
    for each in (manifest, manifest.model_copy(update={"secret_ref": None, "share_to_namespace_selector": None})):
        assert parse_documents(json.dumps(document_of(each)), "f.json").manifests == (each,)
