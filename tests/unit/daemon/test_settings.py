from __future__ import annotations

import json
from pathlib import Path

from daemon.settings import Settings


def test_what_a_later_version_wrote_can_be_read(tmp_path: Path) -> None:
    """After a downgrade a server finds settings of the version that was there before."""
    wanted = Settings("/data", str(tmp_path), "/cache", namespaces=("vision",))
    wanted.save()
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "of_next_year": 1}))
    assert Settings.load(str(tmp_path)) == wanted
