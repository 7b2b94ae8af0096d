"""Which credentials a source reads with: those that were there when it was built, whatever is there by now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon.building import Builder
from daemon.checking import check
from daemon.settings import Settings
from daemon.wanted import Wanted
from dsfs.errors import ConfigError
from dsfs.manifest.documents import load_documents, parse_documents
from dsfs.manifest.secrets import Secrets
from dsfs.sources.base import Source
from dsfs.sources.unusable import UnusableSource

MANIFESTS = """
{apiVersion: dsfs.dev/v1alpha1, kind: Dataset, metadata: {name: own, namespace: a},
 spec: {secretRef: keys, share: true, mountOptions: {path: below}, source: {type: S3, uri: "s3://bucket/"}}}
---
{apiVersion: dsfs.dev/v1alpha1, kind: Dataset, metadata: {name: lent, namespace: b},
 spec: {source: {type: REFERENCE, uri: "dataset://a/own"}}}
---
{apiVersion: dsfs.dev/v1alpha1, kind: Dataset, metadata: {name: plain, namespace: a},
 spec: {source: {type: S3, uri: "s3://bucket/"}}}
"""


def write(secret: Path, value: str) -> dict[str, str]:
    secret.mkdir(parents=True, exist_ok=True)
    values = {"access-key": "who", "secret-key": value}
    for key, text in values.items():
        (secret / key).write_text(text)
    return values


def test_a_secret_that_has_changed_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.yaml").write_text(MANIFESTS)
    secret = tmp_path / "secrets/a/keys"
    first = write(secret, "first")
    settings = Settings("/data", str(tmp_path), str(tmp_path))
    manifests = load_documents([str(tmp_path / "m.yaml")]).manifests
    known = {manifest.id: manifest for manifest in manifests}
    secrets = Secrets(None, (str(tmp_path / "secrets"),))
    builder = Builder(settings, Wanted(tuple(manifests), known, secrets, single=False))

    async def use() -> None:
        sources = {name: await builder.build(manifest) for name, manifest in known.items()}
        second = write(secret, "second")
        assert builder.reads_with(known["a/own"]) == second
        assert builder.built_with(sources["a/own"]) == first
        assert builder.built_with(sources["b/lent"]) == first
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "came later")
        assert "AWS_ACCESS_KEY_ID" not in builder.built_with(sources["a/plain"])
        assert builder.built_with(await builder.build(known["b/lent"])) == second
        with pytest.raises(ConfigError):
            builder.built_with(UnusableSource("s3://bucket/", "of no Secret"))
        for source in sources.values():
            await source.close()

    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    asyncio.run(use())


@pytest.mark.parametrize("label", ["nlp", "audio", None])
def test_a_selector_goes_by_the_labels_of_the_reference_s_namespace(label: str | None, tmp_path: Path) -> None:
    text = MANIFESTS.replace("{secretRef: keys,", "{shareToNamespaceSelector: {matchLabels: {team: nlp}},")
    if label is not None:
        text += f"---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: b, labels: {{team: {label}}}}}}}"
    documents = parse_documents(text, "m.yaml")
    known = {manifest.id: manifest for manifest in documents.manifests}
    settings = Settings("/data", str(tmp_path), str(tmp_path))
    wanted = Wanted(documents.manifests, known, Secrets(None, ()), single=False, labels=documents.labels)
    builder, lent = Builder(settings, wanted), known["b/lent"]
    assert builder.is_entitled(lent) is (label == "nlp")
    wrong = check(documents).wrong
    if label == "nlp":
        asyncio.run(_closed(builder.build(lent)))
        assert wrong == ()
        return
    with capture_logs() as logged, pytest.raises(ConfigError) as caught:
        asyncio.run(builder.build(lent))
    with capture_logs() as again, pytest.raises(ConfigError):
        asyncio.run(builder.build(lent))
    assert again == [], "it is built again every half a minute"
    known_labels = f"kubernetes.io/metadata.name=b{f', team={label}' if label else ''}"
    assert "is not there or not shared with namespace b (its owner sets spec.share; " in str(caught.value)
    assert str(caught.value).endswith(f"known here: {known_labels})")
    has = f"team={label}" if label else "no label team that is known (a Namespace document gives them)"
    why = f"shareToNamespaceSelector of a/own asks for team=nlp, namespace b has {has}"
    assert [line["reason"] for line in logged] == [why]
    assert wrong == (
        f"m.yaml: document 2: field spec.source.uri: dataset://a/own is not shared with namespace b: {why}",
    )
    absent = lent.model_copy(update={"source": lent.source.model_copy(update={"uri": "dataset://a/none"})})
    with pytest.raises(ConfigError) as other:
        asyncio.run(builder.build(absent))
    assert str(other.value) == str(caught.value).replace("a/own", "a/none"), "which of the two it is stays the owner's"


def test_each_reason_why_a_reference_is_hidden_is_logged_once(tmp_path: Path) -> None:
    documents = parse_documents(
        MANIFESTS.replace("share: true", "share: false").replace("secretRef: keys,", ""), "m.yaml"
    )
    known = {manifest.id: manifest for manifest in documents.manifests}
    wanted = Wanted(documents.manifests, known, Secrets(None, ()), single=False)
    builder = Builder(Settings("/data", str(tmp_path), str(tmp_path)), wanted)
    own, lent = known["a/own"], known["b/lent"]
    selected = {"share": True, "share_to_namespace_selector": {"matchLabels": {"team": "nlp"}}}

    def logged(**update: object) -> list[str]:
        builder.known["a/own"] = own.model_copy(update=update)
        with capture_logs() as lines, pytest.raises(ConfigError):
            asyncio.run(builder.build(lent))
        return [line["reason"] for line in lines]

    assert logged() == ["spec.share of a/own is not true"]
    assert logged() == []
    assert len(logged(**selected)) == 1
    assert logged(**selected) == []
    builder.known["a/own"] = own.model_copy(update={"share": True})
    asyncio.run(_closed(builder.build(lent)))
    assert len(logged(**selected)) == 1, "it was shared meanwhile"


async def _closed(building: Awaitable[Source]) -> None:
    await (await building).close()


def test_what_is_never_read_says_so_whatever_else_is_missing(tmp_path: Path) -> None:
    text = """{apiVersion: dataset.baizeai.io/v1alpha1, kind: Dataset, metadata: {name: own, namespace: a},
 spec: {secretRef: not-there, source: {type: DATABASE, uri: "database://x"}}}"""
    (manifest,) = parse_documents(text, "m.yaml").manifests
    known = {manifest.id: manifest}
    builder = Builder(
        Settings("/data", str(tmp_path), str(tmp_path)), Wanted((manifest,), known, Secrets(None, ()), single=False)
    )
    with pytest.raises(ConfigError, match="is built, not read"):
        asyncio.run(builder.build(manifest))
