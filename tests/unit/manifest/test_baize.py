"""Manifests of BaizeAI/dataset, as their users have them."""

from __future__ import annotations

import pytest
import yaml

from dsfs.errors import ConfigError
from dsfs.manifest import baize, schema
from dsfs.manifest.documents import parse_documents
from dsfs.manifest.schema import Manifest, MountOptions, Preheat, SourceType
from dsfs.sources import git, hub_address
from dsfs.sources.registry import build_source

S3 = """
apiVersion: dataset.baizeai.io/v1alpha1
kind: Dataset
metadata:
  name: imagenet
  namespace: vision
  labels: {team: vision}
  annotations: {owner: someone}
  finalizers: [dataset-controller]
spec:
  dataSyncRound: 2
  mountOptions: {gid: 2000, mode: "0750", path: /, uid: 0}
  source:
    type: S3
    uri: s3://bucket/models/
    options: {region: us-east-1, provider: AWS, bandwidthLimit: 5M, syncMode: copy, whatever: kept}
  secretRef: s3-credentials
  share: true
  shareToNamespaceSelector: {matchLabels: {kubernetes.io/metadata.name: nlp}}
  volumeClaimTemplate:
    metadata: {name: imagenet-volume}
    spec: {storageClassName: nfs, resources: {requests: {storage: 1Ti}}}
  resources: {limits: {cpu: "1"}}
  aFieldOfALaterVersion: 5
status:
  phase: READY
  conditions: [{type: Config, status: "True"}]
"""


def read(text):
    (manifest,) = parse_documents(text, "f.yaml").manifests
    return manifest


def spec(**fields):
    source = {"type": "GIT", "uri": "https://host/owner/repo.git"}
    return yaml.safe_dump(
        {
            "apiVersion": "dataset.baizeai.io/v1alpha1",
            "kind": "Dataset",
            "metadata": {"name": "a"},
            "spec": {"source": source, **fields},
        }
    )


def test_a_whole_manifest():
    manifest = read(S3)
    assert manifest.id == "vision/imagenet"
    assert manifest.source.type is SourceType.S3
    assert manifest.source.options == {
        "region": "us-east-1",
        "provider": "AWS",
        "bandwidthLimit": "5M",
        "syncMode": "copy",
        "whatever": "kept",
    }
    assert manifest.secret_ref == "s3-credentials"
    assert manifest.share
    assert manifest.share_to_namespace_selector == {"matchLabels": {"kubernetes.io/metadata.name": "nlp"}}
    assert manifest.mount_options == MountOptions(path="/", uid=0, gid=2000, mode="0750")
    assert manifest.data_sync_round == 2


def test_their_defaults_are_not_ours():
    for fields in [{}, {"mountOptions": {}}, {"mountOptions": None}, {"mountOptions": {"uid": None, "mode": None}}]:
        manifest = read(spec(**fields))
        assert manifest.mount_options == MountOptions(path="/", uid=1000, gid=1000, mode="0774")
        assert manifest.data_sync_round == 1


@pytest.mark.parametrize(
    ("kind", "uri"),
    [
        ("GIT", "git://host/owner/repo"),
        ("S3", "s3://bucket/prefix"),
        ("HTTP", "http://host/dir/?a=b"),
        ("PVC", "pvc://claim/dir"),
        ("NFS", "nfs://host/export"),
        ("CONDA", "conda://env?python=3.11"),
        ("REFERENCE", "dataset://ns/name"),
        ("HUGGING_FACE", "huggingface://Owner/Name?repoType=DATASET"),
        ("MODEL_SCOPE", "modelscope://ns/Model"),
        ("DATABASE", "database://10.0.0.1:3306"),
        ("HADOOP", "hdfs://host:9000"),
        ("MANUAL", "manual://"),
    ],
)
def test_all_twelve_types(kind, uri):
    source = read(spec(source={"type": kind, "uri": uri})).source
    assert (source.type, source.uri) == (SourceType(kind), uri)


def test_a_claim_is_accepted_and_kept_out():
    assert read(spec(volumeClaimRef={"name": "claim", "subPath": "a", "more": 1})) == read(spec())


def test_unknown_fields_are_pruned_as_their_api_server_does():
    pruned = spec(preheat="required", mountOptions={"x": 1}, source={"type": "S3", "uri": "s3://a", "x": 1})
    manifest = read(pruned)
    assert manifest.preheat is Preheat.NONE
    assert manifest.mount_options.mode == "0774"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"source": {"type": "FSSPEC", "uri": "x://y"}}, "spec.source.type: must be one of S3, HTTP, GIT"),
        ({"source": {"type": ["S3"], "uri": "x://y"}}, "spec.source.type: must be one of S3, HTTP, GIT"),
        ({"source": None}, "spec.source: is missing"),
        ({"share": "true"}, "spec.share: must be true or false"),
        ({"mountOptions": {"uid": "0"}}, "spec.mountOptions.uid: must be a whole number"),
        ({"mountOptions": {"mode": "0999"}}, "spec.mountOptions.mode: must be 3 or 4 octal digits"),
        ({"dataSyncRound": "0"}, "spec.dataSyncRound: must be a whole number"),
        ({"dataSyncRound": 2**31}, "spec.dataSyncRound: must be at most 2147483647"),
        ({"dataSyncRound": -(2**31) - 1}, "spec.dataSyncRound: must be at least -2147483648"),
        ({"volumeClaimTemplate": "x"}, "spec.volumeClaimTemplate: must be a mapping"),
        ({"volumeClaimRef": {"subPath": "x"}}, "spec.volumeClaimRef.name: is missing"),
        ({"resources": [1]}, "spec.resources: must be a mapping"),
        ({"shareToNamespaceSelector": {"matchLables": {"a": "b"}}}, "(did you mean matchLabels?)"),
    ],
)
def test_a_wrong_type_or_value_is_refused(fields, expected):
    with pytest.raises(ConfigError) as caught:
        read(spec(**fields))
    assert str(caught.value).startswith("f.yaml: document 1: field spec.")
    assert expected in str(caught.value)
    assert "FSSPEC" not in str(caught.value)


@pytest.mark.parametrize("first", [0, -3])
def test_the_first_round_is_any_number(first):
    """Theirs is a rule for updates alone; of ours the first is 1."""
    manifest = read(spec(dataSyncRound=first))
    assert manifest.data_sync_round == first
    assert Manifest.model_validate(manifest.model_dump(mode="json")) == manifest, "as one server hands it to the next"
    ours = spec(dataSyncRound=first).replace(baize.API_VERSION, schema.API_VERSION)
    with pytest.raises(ConfigError, match="dataSyncRound: must be at least 1"):
        read(ours)


@pytest.mark.parametrize(
    ("source", "alike"),
    [
        ({"type": "GIT", "options": {"submodules": "all"}}, {"submodules": "true"}),
        ({"type": "GIT", "options": {"submodules": "false"}}, {"submodules": "false"}),
        ({"type": "GIT", "options": {"submodules": " "}}, {"submodules": " "}),
        ({"type": "HUGGING_FACE", "options": {"repoType": "datasets"}}, {}),
        ({"type": "HUGGING_FACE", "options": {"repoType": "space"}}, {"repoType": "space"}),
        ({"type": "MODEL_SCOPE", "options": {"repoType": "space", "revision": "v1"}}, {"revision": "v1"}),
        ({"type": "MODEL_SCOPE", "options": {"repoType": "DATASET"}}, {"repoType": "DATASET"}),
    ],
)
def test_values_that_mean_something_there(source, alike):
    uris = {"GIT": "https://h/o/r.git", "HUGGING_FACE": "huggingface://O/N", "MODEL_SCOPE": "modelscope://o/n"}
    whole = {**source, "uri": uris[source["type"]]}
    manifest = read(spec(source=whole))
    assert manifest.source.options == alike
    build_source(manifest.source, {})
    if source["options"] != alike:
        with pytest.raises(ConfigError):
            build_source(read(spec(source=whole).replace(baize.API_VERSION, schema.API_VERSION)).source, {})


def test_what_the_sources_know_is_left_as_it_is():
    words = [word for word in (*git._ON, *git._OFF) if word]
    sources = [("GIT", "https://h/o/r.git", "submodules", word) for word in words]
    sources += [("HUGGING_FACE", "huggingface://O/N", "repoType", kind) for kind in hub_address._HF_KINDS]
    sources += [("MODEL_SCOPE", "modelscope://o/n", "repoType", kind) for kind in hub_address._MS_KINDS]
    for kind, uri, option, value in sources:
        assert read(spec(source={"type": kind, "uri": uri, "options": {option: value}})).source.options[option] == value


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("huggingface://Owner/Name?foo=1", "huggingface://Owner/Name"),
        ("huggingface://Owner/Name?foo=1&revision=v2", "huggingface://Owner/Name?revision=v2"),
        ("huggingface://Owner/Name?repoType=datasets", "huggingface://Owner/Name"),
        ("huggingface://Owner/Name?repoType=DATASET&&a=1", "huggingface://Owner/Name?repoType=DATASET&"),
        # what could be read all along is the same URI as ever, or it would be another dataset
        ("huggingface://Owner/Name?", "huggingface://Owner/Name?"),
        ("huggingface://Owner/Name", "huggingface://Owner/Name"),
        ("huggingface://Owner/Name?revision=v2&", "huggingface://Owner/Name?revision=v2&"),
        ("huggingface://Owner/Name?repoType=DATASET&&a", "huggingface://Owner/Name?repoType=DATASET&&a"),
        ("huggingface://Owner/Name?%72evision=v2&foo=", "huggingface://Owner/Name?%72evision=v2&foo="),
    ],
)
def test_their_loader_looks_at_no_query(written, read_as):
    source = read(spec(source={"type": "HUGGING_FACE", "uri": written})).source
    assert source.uri == read_as
    build_source(source, {})


@pytest.mark.parametrize(
    ("kind", "uri", "options", "secret"),
    [
        ("GIT", "https://example.org/owner/repo.git", {"branch": "master", "depth": "1"}, {}),
        ("HTTP", "http://example.org/train-data/", {}, {}),
        ("HUGGING_FACE", "huggingface://Owner/Model-medium", {"repoType": "model"}, {"token": "fake"}),
        ("MODEL_SCOPE", "modelscope://owner/model_base", {"repoType": "model"}, {"token": "fake"}),
        (
            "S3",
            "s3://my-bucket/models/",
            {"region": "us-east-1", "provider": "AWS"},
            {"access-key": "fake", "secret-key": "fake"},
        ),
    ],
)
def test_what_their_samples_have_can_be_built(kind, uri, options, secret):
    """config/samples of theirs, field by field: each has a bandwidthLimit, for the job that copies."""
    source = {"type": kind, "uri": uri, "options": {**options, "bandwidthLimit": "5M"}}
    claim = {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}}}
    manifest = read(
        spec(
            source=source,
            dataSyncRound=1,
            mountOptions={"gid": 1000, "mode": "0774", "path": "/", "uid": 1000},
            secretRef="credentials",
            volumeClaimTemplate=claim,
        )
    )
    assert manifest.source.options["bandwidthLimit"] == "5M"
    built = build_source(manifest.source, secret)
    plain = build_source(manifest.source.model_copy(update={"options": options}), secret)
    assert built.identity == plain.identity
    assert "5M" not in repr(vars(built))


@pytest.mark.parametrize(
    ("fields", "uri"),
    [
        ({}, "manual://"),
        ({"volumeClaimRef": {"name": "shared", "subPath": "x/y z"}}, "manual://shared/x/y%20z"),
        ({"volumeClaimRef": {"name": "shared"}}, "manual://shared"),
        ({"volumeClaimTemplate": {"metadata": {"name": "volume"}, "spec": {}}}, "manual://volume"),
        ({"volumeClaimTemplate": {"spec": {}}}, "manual://"),
    ],
)
def test_a_manual_dataset_lies_in_its_claim(fields, uri):
    assert read(spec(source={"type": "MANUAL", "uri": "manual://"}, **fields)).source.uri == uri


@pytest.mark.parametrize(
    ("source", "credentials"),
    [
        ({"type": "HUGGING_FACE", "uri": "huggingface://owner/name"}, {}),
        ({"type": "MODEL_SCOPE", "uri": "modelscope://owner/name"}, {}),
        ({"type": "S3", "uri": "s3://bucket/x"}, {}),
        ({"type": "GIT", "uri": "https://host/owner/repo.git"}, {}),
        ({"type": "NFS", "uri": "nfs://host/export"}, {}),
        ({"type": "HADOOP", "uri": "webhdfs://host:9870"}, {}),
        ({"type": "PVC", "uri": "pvc://claim/x"}, {}),
        ({"type": "MANUAL", "uri": "manual://claim"}, {}),
    ],
)
def test_options_that_mean_nothing_have_no_effect(source, credentials, tmp_path):
    foreign = {"syncMode": "copy", "whatever": "kept", "repo": "x"}
    manifest = read(spec(source={**source, "options": foreign}))
    build_source(manifest.source, credentials, pvc_root=str(tmp_path), strict=False)
    with pytest.raises(ConfigError, match="is not known"):
        build_source(manifest.source, credentials, pvc_root=str(tmp_path))
