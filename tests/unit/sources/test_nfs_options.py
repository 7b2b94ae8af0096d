"""URI and options of an NFS dataset."""

from __future__ import annotations

import pytest

from dsfs.errors import ConfigError
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.sources import nfs_library
from dsfs.sources.base import Source
from dsfs.sources.registry import build_source


def _build(uri: str, **options: str) -> Source:
    return build_source(SourceSpec(type=SourceType.NFS, uri=uri, options=options), {})


@pytest.mark.parametrize(
    ("uri", "options", "says"),
    [
        ("nfs:///export", {}, "cannot be read"),
        ("nfs://h:port/export", {}, "cannot be read"),
        ("nfs://h/a/../b", {}, "path cannot be used"),
        ("nfs://h/a", {"version": "2"}, "must be 3 or 4"),
        ("nfs://h/a", {"port": "70000"}, "must be a number"),
        ("nfs://h/a", {"sec": "krb5"}, "is not known"),
    ],
)
def test_what_is_refused(uri: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        _build(uri, **options)
    assert "\n" not in str(caught.value)


def test_one_export_is_one_identity_however_it_is_reached() -> None:
    assert _build("nfs://h/a/").identity == _build("nfs://h:2049/a", version="4.1").identity
    assert _build("nfs://h/a").identity != _build("nfs://h:2050/a").identity
    assert _build("nfs://h/a").uri == "nfs://h/a"


def test_without_libnfs_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nfs_library, "_SONAMES", ("libnfs-is-not-here.so.0",))
    nfs_library.library.cache_clear()
    try:
        with pytest.raises(ConfigError, match="apt install libnfs13"):
            _build("nfs://h/a")
    finally:
        nfs_library.library.cache_clear()
