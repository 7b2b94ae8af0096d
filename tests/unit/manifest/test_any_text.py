"""Whatever comes in: it is understood, or refused in one line. Nothing else ever leaves this room."""

from __future__ import annotations

import contextlib
import json

import yaml
from hypothesis import given
from hypothesis import strategies as st

from dsfs.errors import ConfigError
from dsfs.manifest.documents import parse_documents
from dsfs.manifest.durations import parse_duration
from dsfs.manifest.schema import Manifest
from dsfs.manifest.sizes import parse_size_or_percent
from dsfs.manifest.uri import SCHEMES, manifest_from_uri

FIELDS = """
apiVersion kind metadata spec items name namespace source type uri options secretRef share mountOptions uid mode
path cache quota shareToNamespaceSelector matchLabels matchExpressions key operator values data stringData
dataSyncRound preheat readPath volumeClaimRef volumeClaimTemplate status << = Dataset Secret List v1 S3 In
dsfs.dev/v1alpha1 dataset.baizeai.io/v1alpha1 s3://a/b 0755 1Gi
"""
WORDS = st.sampled_from(FIELDS.split())
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.binary(max_size=5)
    | st.text(max_size=10)
    | WORDS
)
KEYS = WORDS | st.text(max_size=5) | st.integers() | st.none() | st.booleans()
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=30,
)
DATASETS = st.fixed_dictionaries(
    {
        "apiVersion": st.sampled_from(["dsfs.dev/v1alpha1", "dataset.baizeai.io/v1alpha1"]),
        "kind": st.just("Dataset"),
        "metadata": st.fixed_dictionaries({"name": st.just("a") | SCALARS}) | ANYTHING,
        "spec": st.fixed_dictionaries(
            {
                "source": st.fixed_dictionaries(
                    {"type": st.just("S3") | SCALARS, "uri": st.just("s3://a") | SCALARS},
                    optional={"options": ANYTHING},
                )
            },
            optional={
                "mountOptions": ANYTHING | st.fixed_dictionaries({"uid": SCALARS, "mode": SCALARS, "path": SCALARS}),
                "cache": ANYTHING | st.fixed_dictionaries({"quota": SCALARS, "priority": SCALARS}),
                "shareToNamespaceSelector": ANYTHING | st.fixed_dictionaries({"matchExpressions": ANYTHING}),
                "secretRef": SCALARS,
                "dataSyncRound": SCALARS,
                "volumeClaimRef": ANYTHING,
                "resources": ANYTHING,
            },
        )
        | ANYTHING,
    }
)
SECRETS = st.fixed_dictionaries(
    {"apiVersion": st.just("v1"), "kind": st.just("Secret"), "metadata": st.just({"name": "a"}) | ANYTHING},
    optional={"data": ANYTHING, "stringData": ANYTHING},
)

OTHERS = st.fixed_dictionaries(
    {"apiVersion": st.just("v1"), "kind": st.sampled_from(["Namespace", "ConfigMap", "Service"]), "metadata": ANYTHING},
    optional={"data": ANYTHING},
) | st.fixed_dictionaries(
    {
        "apiVersion": st.just("v1"),
        "kind": st.just("Namespace"),
        "metadata": st.fixed_dictionaries({"name": st.just("a") | SCALARS, "labels": ANYTHING}),
    }
)
HADOOP = {
    "apiVersion": "dsfs.dev/v1alpha1",
    "kind": "Dataset",
    "metadata": {"name": "a"},
    "spec": {"source": {"type": "HADOOP", "uri": "hdfs://h", "options": {"hdfsConfigName": "a", "coreSiteXml": "a"}}},
}


def result_or_line(call, *arguments, **more):
    """What the call returned, or the one line of its ConfigError."""
    said = ""
    try:
        return call(*arguments, **more), said
    except ConfigError as error:
        said = str(error)
    assert len(said.splitlines()) == 1, said
    return None, said


def is_understood_or_refused(text, file):
    found, said = result_or_line(parse_documents, text, file)
    if found is None:
        assert said.startswith(f"{file}: ")
    else:
        assert all(isinstance(manifest, Manifest) for manifest in found.manifests)
        assert all(
            isinstance(text, str) for values in found.secrets.values() for pair in values.items() for text in pair
        )


@given(ANYTHING | DATASETS | SECRETS | st.fixed_dictionaries({"kind": st.just("List"), "items": st.lists(DATASETS)}))
def test_any_structure_in_yaml(document):
    is_understood_or_refused(yaml.safe_dump(document, allow_unicode=True), "f.yaml")


@given(OTHERS, ANYTHING)
def test_any_structure_beside_a_dataset(document, data):
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}
    texts = [yaml.safe_dump(each, allow_unicode=True) for each in (HADOOP, document, config_map)]
    is_understood_or_refused("---\n".join(texts), "f.yaml")


@given(ANYTHING | DATASETS | SECRETS)
def test_any_structure_in_json(document):
    is_understood_or_refused(json.dumps(document, default=str), "f.json")


SURROGATES = st.text(st.characters(), max_size=5)


@given(DATASETS | SECRETS, SURROGATES, st.sampled_from(["metadata", "spec", "data", "stringData"]), ANYTHING)
def test_half_of_a_surrogate_pair(document, key, where, value):
    inside = document.setdefault(where, {})
    if isinstance(inside, dict):
        inside[f"\ud800{key}"] = f"{value}\udfff"
    is_understood_or_refused(json.dumps(document, default=str), "f.json")


@given(st.text(alphabet="ab01:-[]{}&*!|>'\"%@`#,?\n\t <=.~") | st.text())
def test_any_text_as_a_file(text):
    is_understood_or_refused(text, "f.yaml")
    is_understood_or_refused(text, "f.json")


PREFIXES = st.sampled_from([f"{scheme}://" for scheme in SCHEMES] + ["fsspec+", "fsspec+x://", "git@h:", "/", "./", ""])


@given(
    PREFIXES,
    st.text(st.characters()) | st.text("ab:/@?#&=[]%.git"),
    st.dictionaries(SURROGATES, SURROGATES, max_size=2),
)
def test_any_text_as_a_uri(prefix, rest, options):
    manifest, _ = result_or_line(manifest_from_uri, prefix + rest, options, base_dir="/base")
    if manifest is not None:
        assert "/" not in manifest.name
        assert manifest.source.options == options


@given(st.text() | st.text("0123456789.kmgtpeibKMGTPEIB% smhd"))
def test_any_text_as_a_size_or_a_duration(text):
    with contextlib.suppress(ConfigError):
        assert parse_size_or_percent(text)
    with contextlib.suppress(ConfigError):
        assert 0 < parse_duration(text) < 2**32
