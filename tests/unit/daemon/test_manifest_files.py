"""Manifests that become wrong while they are shown: told once, parsed once, and well again by themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import structlog
import trio

from daemon import manifest_files
from daemon.manifest_files import ManifestFiles
from daemon.settings import Settings
from dsfs import metrics
from dsfs.errors import MountError
from tests.manifests import dataset, write_manifests


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    file = write_manifests(tmp_path / "m/1.yaml", dataset("data", "/data"))
    return Settings("/mnt", str(tmp_path), str(tmp_path), manifest_paths=(str(file.parent),), keeper="/k")


def gauge() -> float:
    return float(metrics.MANIFESTS_TROUBLE._value.get())


def test_a_mistake_is_told_once_and_goes_when_it_is_corrected(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, parsed = tmp_path / "m/1.yaml", []
    documents_of = manifest_files.documents_of
    monkeypatch.setattr(manifest_files, "documents_of", lambda texts: (parsed.append(1), documents_of(texts)))

    async def main() -> None:
        files = ManifestFiles(settings)
        for _look in range(2):
            await files.look()
        assert (files.trouble, gauge(), parsed) == ("", 0, [1]), "what is the same is not parsed again"
        good = file.read_text()
        file.write_text(good.replace("dsfs.dev/v1alpha1", "dsfs.dev/v9"))
        with structlog.testing.capture_logs() as logs:
            for _look in range(3):
                await files.look()
        assert str(file) in files.trouble
        assert "apiVersion" in files.trouble
        assert "\n" not in files.trouble
        assert (gauge(), len(parsed), [line["log_level"] for line in logs]) == (1, 2, ["error"])
        file.parent.rename(tmp_path / "away")
        with structlog.testing.capture_logs() as logs:
            for _look in range(2):
                await files.look()
        assert str(file.parent) in files.trouble
        assert len(logs) == 1, "another cause"
        (tmp_path / "away").rename(file.parent)
        file.write_text(good)
        with structlog.testing.capture_logs() as logs:
            await files.look()
        assert (files.trouble, gauge(), [line["log_level"] for line in logs]) == ("", 0, ["info"])
        file.unlink()
        await files.look()
        assert (files.trouble, gauge()) == ("", 0), "none is no mistake"
        file.write_text(good)
        await files.look()
        assert (files.trouble, gauge()) == ("", 0), "the same as before it was away"

    trio.run(main)


def test_what_was_not_followed_stays_told(settings: Settings) -> None:
    async def main() -> None:
        files = ManifestFiles(settings)
        with structlog.testing.capture_logs():
            files.note_not_followed(MountError("cannot be mounted"))
            await files.look()
        assert files.trouble == "the manifests are not followed: cannot be mounted"
        assert gauge() == 1

    trio.run(main)


def test_what_mount_was_given_is_not_looked_at(settings: Settings) -> None:
    assert ManifestFiles(settings).paths == settings.manifest_paths
    assert ManifestFiles(replace(settings, keeper=None)).paths == ()
