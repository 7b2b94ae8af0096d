"""What the verbs print: data on stdout, words on stderr."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import typer

from dsfs.errors import one_line
from dsfs.manifest.sizes import size_text

LONGEST_LINE = 4000  # characters

size = size_text


def show_json(data: object) -> None:
    typer.echo(json.dumps(data, indent=2))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table as wide as its content: it is read by people, and by grep."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(one_line(cell, LONGEST_LINE) for cell in row))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=10_000)
    console.print(table)  # this is what was asked for


def say(text: str) -> None:
    typer.echo(text, err=True)


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}%" if whole else "-"


def dataset_row(dataset: dict[str, Any]) -> list[str]:
    """One line of ``dsfs status`` and ``dsfs dataset list``."""
    return [
        f"{dataset['namespace']}/{dataset['name']}",
        dataset["phase"],
        dataset["read_path"],
        str(dataset["files"]),
        size(dataset["bytes"]),
        size(dataset["cached_bytes"]),
        percent(dataset["cached_bytes"], dataset["bytes"]),
        dataset["revision"],
        dataset["source"],
        one_line(dataset["message"], LONGEST_LINE),
    ]


DATASET_COLUMNS = ("DATASET", "PHASE", "READ PATH", "FILES", "SIZE", "CACHED", "%", "REVISION", "SOURCE", "MESSAGE")
