"""``dsfs dataset``: what is mounted, one by one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated

import typer

from daemon import running
from daemon.cli.credential import set_credential
from daemon.cli.options import AsJson, DatasetName, Mountpoint, asked_of
from daemon.cli.output import DATASET_COLUMNS, LONGEST_LINE, dataset_row, say, show_json, show_table
from daemon.control.client import ask
from dsfs.errors import one_line

app = typer.Typer(
    help="Look at datasets, and change which there are.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.command("set-credential")(set_credential)


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
    dataset: DatasetName,
    mountpoint: Mountpoint = None,
    as_json: AsJson = False,
) -> None:
    """One dataset with its manifest, secrets left out."""
    mount, dataset = asked_of(dataset, mountpoint)
    found = ask(mount, "GET", f"/api/v1/datasets/{dataset}")
    if as_json:
        show_json(found)
        return
    spec = found.pop("manifest")["spec"]
    rows = [(key, str(value)) for key, value in found.items()]
    rows += [(f"spec.{key}", str(value)) for key, value in spec.items() if value not in ({}, [])]
    show_table(("FIELD", "VALUE"), rows)


@app.command("apply")
def apply(
    file: Annotated[list[str], typer.Option("-f", "--file", metavar="FILE_OR_DIR", help="Manifests; may be repeated.")],
    mountpoint: Mountpoint = None,
    as_json: AsJson = False,
) -> None:
    """Add datasets to a running mount, or change them; another dataSyncRound asks for a resync."""
    # 0.1 s that every other verb does without
    from dsfs.manifest.documents import as_yaml, documents_of, refuse_others_alone, texts_of

    texts = texts_of(file)
    documents = documents_of(texts)  # refused here, with the name of the file, before anything is sent
    refuse_others_alone(documents)
    _say_passed_over(documents.passed_over)
    body = {"manifests": "\n---\n".join(as_yaml(name, text) for name, text in texts)}
    answer = ask(running.find(mountpoint), "POST", "/api/v1/apply", body, timeout_s=None)
    if as_json:
        show_json(answer)
    else:
        for line in answer["done"]:
            typer.echo(line)


@app.command("check")
def check(
    file: Annotated[list[str], typer.Option("-f", "--file", metavar="FILE_OR_DIR", help="Manifests; may be repeated.")],
) -> None:
    """Read manifests as mount, serve and apply would, and their sources' options: needs no mount, asks no source."""
    import structlog

    from daemon import checking
    from dsfs.manifest.documents import load_documents, refuse_others_alone

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # a server has a log
    documents = load_documents(file, none_yet=True)
    refuse_others_alone(documents)
    findings = checking.check(documents)
    _say_passed_over(documents.passed_over)
    for line in findings.unknown:
        say(f"dsfs: not known here: {one_line(line, LONGEST_LINE)}")
    for line in findings.wrong:
        say(f"dsfs: {one_line(line, LONGEST_LINE)}")
    if findings.wrong:
        raise typer.Exit(1)
    number = len(documents.manifests)
    typer.echo("1 manifest is fine" if number == 1 else f"{number} manifests are fine")


def _say_passed_over(lines: Sequence[str]) -> None:
    for line in lines:
        say(f"dsfs: {one_line(line, LONGEST_LINE)}")


@app.command("resync")
def resync(dataset: DatasetName, mountpoint: Mountpoint = None, as_json: AsJson = False) -> None:
    """List the source anew and show that; unchanged files keep their inode numbers and their cached bytes."""
    found, dataset = asked_of(dataset, mountpoint)
    answer = ask(found, "POST", "/api/v1/resync", {"selector": dataset}, timeout_s=None)
    if as_json:
        show_json(answer)
    else:
        typer.echo(f"revision {answer['revision']}")


@app.command("clone")
def clone(
    dataset: DatasetName,
    new: Annotated[str, typer.Argument(metavar="[NAMESPACE/]NEW", help="Its second name.")],
    mountpoint: Mountpoint = None,
    as_json: AsJson = False,
) -> None:
    """Show a dataset under a second name too: same source and revision, same cached bytes, nothing is fetched.

    In its own namespace it reads with the original's secretRef. In another one it reads with what that namespace has,
    and must be able to; sharing is not cloned.
    """
    found, dataset = asked_of(dataset, mountpoint)
    body = {"selector": dataset, "new": new}
    answer = ask(found, "POST", "/api/v1/clone", body, timeout_s=None)
    if as_json:
        show_json(answer)
    else:
        typer.echo(f"cloned {answer['cloned']} as {answer['dataset']}")


@app.command("delete")
def delete(dataset: DatasetName, mountpoint: Mountpoint = None, as_json: AsJson = False) -> None:
    """Show a dataset no longer. Its cached bytes stay until the space is wanted."""
    found, dataset = asked_of(dataset, mountpoint)
    answer = ask(found, "POST", "/api/v1/delete", {"selector": dataset}, timeout_s=None)
    if as_json:
        show_json(answer)
    else:
        typer.echo(f"deleted {answer['deleted']}")
