"""``dsfs dataset``: what is mounted, one by one."""

from __future__ import annotations

import typer

from daemon import running
from daemon.cli.options import AsJson, Mountpoint
from daemon.cli.output import DATASET_COLUMNS, dataset_row, show_json, show_table
from daemon.control.client import ask

app = typer.Typer(help="Look at datasets.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_datasets(mountpoint: Mountpoint = None, as_json: AsJson = False) -> None:
    """The datasets of a mount."""
    datasets = ask(running.find(mountpoint), "GET", "/api/v1/status")["datasets"]
    if as_json:
        show_json(datasets)
    else:
        show_table(DATASET_COLUMNS, [dataset_row(dataset) for dataset in datasets])


@app.command("show")
def show(
    dataset: str = typer.Argument(metavar="[NAMESPACE/]DATASET", help="Which one."),
    mountpoint: Mountpoint = None,
    as_json: AsJson = False,
) -> None:
    """One dataset with its manifest, secrets left out."""
    found = ask(running.find(mountpoint), "GET", f"/api/v1/datasets/{dataset}")
    if as_json:
        show_json(found)
        return
    manifest = found.pop("manifest")
    rows = [(key, str(value)) for key, value in found.items()]
    rows += [(f"manifest.{key}", str(value)) for key, value in manifest.items() if value not in (None, {}, [])]
    show_table(("FIELD", "VALUE"), rows)
