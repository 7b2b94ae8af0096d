"""Carries out deploy/Dockerfile where no container engine is: its own steps, in chroots of Debian made by debootstrap.

DIRECTORY gets the base (kept, and used again), a layer for each stage, and, while this runs, the image's tree at
DIRECTORY/image. COMMAND is then run in it as the image's ENTRYPOINT would be (as root: a chroot grants nothing that a
container would), in place of CMD; with --entrypoint=none before the --, by itself. Needs root, debootstrap, overlayfs.

What is checked is the Dockerfile: every FROM, SHELL, ENV, COPY, RUN, USER, ENTRYPOINT and CMD is read from it, and an
instruction that is not known here is refused. Not checked: the base image itself (debootstrap's minbase of the same
release stands for it), and what an engine adds, such as layers and labels.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# As in the slim image: no packages kept once they are installed, no manuals and translations.
AS_SLIM = {
    "etc/apt/apt.conf.d/docker-clean": 'DPkg::Post-Invoke {"rm -f /var/cache/apt/*.bin /var/cache/apt/archives/*";};\n',
    "etc/dpkg/dpkg.cfg.d/docker": "".join(f"path-exclude /usr/share/{each}/*\n" for each in ("doc", "man", "locale")),
}


@dataclass
class Stage:
    name: str
    release: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH, "HOME": "/root"})
    shell: list[str] = field(default_factory=lambda: ["/bin/sh", "-c"])
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """(INSTRUCTION, arguments), continued lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for logical in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if logical.strip():
            word, _, arguments = logical.strip().partition(" ")
            yield word.upper(), arguments.strip()


def stages(text: str) -> list[Stage]:
    found: list[Stage] = []
    for word, arguments in instructions(text):
        if word == "FROM":
            match = re.fullmatch(r"debian:(\w+)-\d{8}-slim(?: AS (\w+))?", arguments)
            if match is None:
                raise SystemExit(f"FROM {arguments}: is not debian:RELEASE-DATE-slim")
            found.append(Stage(match[2] or "", match[1]))
        elif word in ("RUN", "COPY", "ENV", "SHELL", "USER", "ENTRYPOINT", "CMD"):
            found[-1].steps.append((word, arguments))
        elif word != "LABEL":
            raise SystemExit(f"{word}: not known to this runner")
    return found


def base(directory: Path, release: str) -> Path:
    """Debian as its slim image has it, and how this machine reaches its packages."""
    place = directory / f"base-{release}"
    if not (place / "complete").exists():
        address = subprocess.run(
            ["apt-get", "download", "-q", "--print-uris", "bash"], capture_output=True, text=True, check=True
        ).stdout
        match = re.search(r"https?://[^/']+/debian", address)
        mirror = match[0] if match else "http://deb.debian.org/debian"
        shutil.rmtree(place, ignore_errors=True)
        run(["debootstrap", "--variant=minbase", release, place, mirror])
        for file, text in AS_SLIM.items():
            (place / file).write_text(text)
        for file in Path("/etc/apt/apt.conf.d").glob("99*"):
            shutil.copy(file, place / "etc/apt/apt.conf.d")
        (place / "complete").touch()
    return place


def run(argv: list[str | os.PathLike[str]], **kwargs: object) -> None:
    subprocess.run(argv, check=True, **kwargs)  # type: ignore[call-overload]


class Tree:
    """A stage's root: the base below, what the steps change above it."""

    def __init__(self, place: Path, lower: Path, layer: Path) -> None:
        self.place = place
        shutil.rmtree(layer, ignore_errors=True)
        for part in (place, layer / "upper", layer / "work"):
            part.mkdir(parents=True, exist_ok=True)
        self.upper = layer / "upper"
        options = f"lowerdir={lower},upperdir={self.upper},workdir={layer / 'work'}"
        run(["mount", "-t", "overlay", "overlay", "-o", options, place])
        try:
            self._furnish()
        except BaseException:
            self.close()  # this machine's /dev must not stay in a directory that somebody will remove
            raise

    def _furnish(self) -> None:
        for name in ("dev", "proc", "sys"):
            run(["mount", "--rbind", "--make-rslave", f"/{name}", self.place / name])
        run(["mount", "-t", "tmpfs", "tmpfs", self.place / "run"])
        shutil.copy(BUNDLE, self.place / "run/ca.crt")
        (self.place / "etc/resolv.conf").unlink(missing_ok=True)
        shutil.copy("/etc/resolv.conf", self.place / "etc/resolv.conf")

    def chroot(self, argv: list[str], stage: Stage, user: str) -> int:
        environment = {
            **stage.environment,
            "PIP_CERT": "/run/ca.crt",  # how this machine reaches the registries; no part of the image
            "DEBIAN_FRONTEND": "noninteractive",
        }
        return subprocess.run(
            ["chroot", f"--userspec={user}", self.place, *argv], env=environment, check=False
        ).returncode

    def close(self) -> None:
        run(["umount", "-R", "-l", self.place])


def build(stage: Stage, tree: Tree, trees: dict[str, Tree]) -> None:
    for word, arguments in stage.steps:
        print(f"--- {stage.name or 'image'}: {word} {arguments[:100]}", flush=True)
        if word == "RUN":
            status = tree.chroot([*stage.shell, arguments], stage, stage.user)
            if status:
                raise SystemExit(f"RUN {arguments}: exit status {status}")
        elif word == "COPY":
            copy(arguments.split(), tree, trees)
        elif word == "ENV":
            stage.environment.update(pair.split("=", 1) for pair in shlex.split(arguments))
        elif word == "USER":
            stage.user = arguments
        else:
            setattr(
                stage, {"SHELL": "shell", "ENTRYPOINT": "entrypoint", "CMD": "command"}[word], json.loads(arguments)
            )


def copy(words: list[str], tree: Tree, trees: dict[str, Tree]) -> None:
    source_root = ROOT
    if words[0].startswith("--from="):
        source_root = trees[words.pop(0).removeprefix("--from=")].place
    *sources, target = words
    place = tree.place / target.lstrip("/")
    for each in sources:
        source = source_root / each.lstrip("/")
        goal = place / source.name if target.endswith("/") else place
        goal.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(
                source, goal, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(source, goal)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="python deploy/build_in_chroot.py DIRECTORY [--entrypoint=none] [-- COMMAND…]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", metavar="DIRECTORY", type=Path, help="where the trees are made")
    parser.add_argument("--entrypoint", choices=["none"], help="run COMMAND by itself")
    return parser


def main(arguments: list[str]) -> int:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    given, command_words = _parser().parse_args(arguments[:end]), arguments[end + 1 :]
    directory: Path = given.directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    trees: dict[str, Tree] = {}
    with ExitStack() as mounted:
        for number, stage in enumerate(stages(DOCKERFILE.read_text())):
            tree = Tree(
                directory / (stage.name or "image"), base(directory, stage.release), directory / f"layer{number}"
            )
            mounted.callback(tree.close)
            trees[stage.name] = tree
            build(stage, tree, trees)
        used = subprocess.run(["du", "-sm", tree.upper], capture_output=True, text=True, check=True).stdout.split()[0]
        print(f"--- above the base: {used} MB; user {stage.user}; {stage.entrypoint} {stage.command}", flush=True)
        entrypoint = [] if given.entrypoint == "none" else stage.entrypoint
        user = "0:0" if command_words else stage.user
        return tree.chroot([*entrypoint, *(command_words or stage.command)], stage, user)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
