"""Training loaders, emulated: samples a second, and how long an accelerator would have waited for them.

    python -m benchmarks.loaders [--origin s3|http] [--only COLUMN] [--work DIR]

The shapes are those of MLPerf Storage and of language models, a sixteenth to a thousandth in size. An "accelerator"
takes a batch, is busy for the time that its step takes, and waits when the next batch is not there. Use is busy time
over all time (MLPerf: accelerator utilisation). Each loader reads its data twice, in another order: cold, then cached.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import queue
import random
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import data, peers
from benchmarks.report import Table, circumstances, command_line, progress, say
from benchmarks.run import started

MIB = 1 << 20
_FORK = multiprocessing.get_context("fork")
_AHEAD = 4  # batches a worker may have ready, as in a DataLoader with prefetch_factor 4


@dataclass(frozen=True, slots=True)
class Loader:
    """``plan(root, epoch)`` gives the samples in order; ``read`` reads one and says how many bytes that were."""

    name: str
    make: Callable[[Path], None]
    plan: Callable[[Path, int], Sequence[Any]]
    read: Callable[[Any], int]
    batch: int
    step_s: float
    workers: int


# -- ResNet-50: shards of records, each shard from start to end, several at a time (TFRecord)

_RECORD = 114_660


def _make_shards(root: Path) -> None:
    rng = random.Random(1)
    (root / "shards").mkdir(parents=True)
    for number in range(8):
        (root / f"shards/{number:03}.tfrecord").write_bytes(rng.randbytes(160 * _RECORD))


def _plan_shards(root: Path, epoch: int) -> list[tuple[str, int, int]]:
    shards = sorted(str(path) for path in (root / "shards").iterdir())
    random.Random(epoch).shuffle(shards)
    # two shards interleaved, as tf.data does with cycle_length 2
    return [
        (shard, at * _RECORD, _RECORD)
        for first, second in zip(shards[::2], shards[1::2], strict=True)
        for at in range(160)
        for shard in (first, second)
    ]


# -- U-Net3D: one sample a file, read whole, in random order


def _make_volumes(root: Path) -> None:
    rng = random.Random(2)
    (root / "volumes").mkdir(parents=True)
    for number in range(24):
        (root / f"volumes/{number:03}.npz").write_bytes(rng.randbytes(rng.randrange(4, 16) * MIB))


# -- CosmoFlow: a small file a sample, a large directory


def _make_universes(root: Path) -> None:
    rng = random.Random(3)
    (root / "universes").mkdir(parents=True)
    for number in range(120):
        (root / f"universes/{number:05}.tfrecord").write_bytes(
            rng.randbytes(2_830_000 + rng.randrange(-71_000, 71_000))
        )


def _plan_files(directory: str) -> Callable[[Path, int], list[tuple[str, int, int]]]:
    def plan(root: Path, epoch: int) -> list[tuple[str, int, int]]:
        paths = sorted(str(path) for path in (root / directory).iterdir())
        random.Random(epoch).shuffle(paths)
        return [(path, 0, os.stat(path).st_size) for path in paths]

    return plan


# -- ImageNet as files: 110 kB each, in class directories


def _make_images(root: Path) -> None:
    rng = random.Random(4)
    for number in range(2_000):
        path = root / f"images/{number % 40:03}/{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.randrange(30_000, 190_000)))


def _plan_images(root: Path, epoch: int) -> list[tuple[str, int, int]]:
    paths = sorted(str(path) for path in (root / "images").glob("*/*"))
    random.Random(epoch).shuffle(paths)
    return [(path, 0, os.stat(path).st_size) for path in paths]


# -- tokens: sequences at random places of one mapped file (np.memmap)

_SEQUENCE = 4096 * 2


def _make_tokens(root: Path) -> None:
    rng = random.Random(5)
    (root / "tokens").mkdir(parents=True)
    with (root / "tokens/train.bin").open("wb") as file:
        for _ in range(192):
            file.write(rng.randbytes(MIB))


def _plan_tokens(root: Path, epoch: int) -> list[tuple[str, int, int]]:
    path = root / "tokens/train.bin"
    rng = random.Random(epoch)
    places = path.stat().st_size // _SEQUENCE
    return [(str(path), rng.randrange(places) * _SEQUENCE, _SEQUENCE) for _ in range(8_000)]


# -- a checkpoint: safetensors, a header and then every tensor once, mapped


def _make_checkpoint(root: Path) -> None:
    rng = random.Random(6)
    (root / "weights").mkdir(parents=True)
    for shard in range(2):
        with (root / f"weights/model-{shard}.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", 64 * 1024) + rng.randbytes(64 * 1024))
            for _ in range(128):
                file.write(rng.randbytes(MIB))


def _plan_checkpoint(root: Path, _epoch: int) -> list[tuple[str, int, int]]:
    shards = sorted(str(path) for path in (root / "weights").iterdir())
    header = [(shard, 0, 8 + 64 * 1024) for shard in shards]
    return header + [(shard, 8 + 64 * 1024 + at * 4 * MIB, 4 * MIB) for at in range(32) for shard in shards]


def _read_range(sample: tuple[str, int, int]) -> int:
    path, offset, size = sample
    fd = os.open(path, os.O_RDONLY)
    try:
        done = 0
        while done < size:
            piece = os.pread(fd, min(MIB, size - done), offset + done)
            if not piece:
                raise EOFError(f"{path} ends at {offset + done}")
            done += len(piece)
    finally:
        os.close(fd)
    return size


_maps: dict[str, mmap.mmap] = {}


def _read_mapped(sample: tuple[str, int, int]) -> int:
    path, offset, size = sample
    if path not in _maps:
        with open(path, "rb") as file:
            _maps[path] = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    return len(_maps[path][offset : offset + size])


LOADERS = (
    Loader("ResNet-50, record shards", _make_shards, _plan_shards, _read_range, 64, 0.036, 4),
    Loader("U-Net3D, a volume a file", _make_volumes, _plan_files("volumes"), _read_range, 2, 0.02, 4),
    Loader("CosmoFlow, 2.8 MB files", _make_universes, _plan_files("universes"), _read_range, 1, 0.0035, 4),
    Loader("ImageNet, 110 kB files", _make_images, _plan_images, _read_range, 64, 0.036, 8),
    Loader("LLM tokens, mapped, random", _make_tokens, _plan_tokens, _read_mapped, 64, 0.010, 2),
    Loader("checkpoint, mapped, in order", _make_checkpoint, _plan_checkpoint, _read_mapped, 8, 0.001, 2),
)


def epoch(loader: Loader, root: Path, number: int) -> tuple[float, float]:
    """Samples a second, and the accelerator's use between 0 and 1."""
    samples = loader.plan(root, number)
    batches = [samples[at : at + loader.batch] for at in range(0, len(samples), loader.batch)]
    ready: Any = _FORK.Queue(loader.workers * _AHEAD)
    workers = [
        _FORK.Process(target=_work, args=(loader.read, batches[at :: loader.workers], ready))
        for at in range(loader.workers)
    ]
    started_s = time.perf_counter()
    for worker in workers:
        worker.start()
    busy_s = 0.0
    for _ in batches:
        while True:
            with contextlib.suppress(queue.Empty):
                ready.get(timeout=5)
                break
            if any(worker.exitcode for worker in workers):
                raise RuntimeError("a reader ended with an error")
        time.sleep(loader.step_s)  # this is the accelerator: busy with a batch, without the processor
        busy_s += loader.step_s
    took_s = time.perf_counter() - started_s
    for worker in workers:
        worker.join()
    return len(samples) / took_s, busy_s / took_s


def _work(read: Callable[[Any], int], batches: Sequence[Sequence[Any]], ready: Any) -> None:
    for batch in batches:
        ready.put(sum(read(sample) for sample in batch))


def measure(root: Path) -> Iterator[tuple[str, str]]:
    """(row, cell) of one column."""
    for loader in LOADERS:
        for number, name in enumerate(("cold", "again")):
            if number:
                data.drop_caches()
            rate, use = epoch(loader, root, number)
            yield f"{loader.name}: {name}", f"{rate:,.0f}/s, {100 * use:.0f} %"


def main() -> None:
    parser = command_line("benchmarks.loaders", __doc__)
    parser.add_argument("--origin", choices=("s3", "http"), default="s3")
    parser.add_argument("--only", action="append", default=[], help="a column of the table; may be repeated")
    parser.add_argument("--work", default=None, help="a directory on the disk to measure (default: a temporary one)")
    args = parser.parse_args()
    cells: dict[str, dict[str, str]] = {}
    with TemporaryDirectory(prefix="dsfs-loaders-", dir=args.work, ignore_cleanup_errors=True) as made:
        work = Path(made)
        source = work / "source"
        for loader in LOADERS:
            loader.make(source)
        with started(args.origin, source, work) as origin:
            columns = {
                "raw": lambda: peers.raw(source),
                "rclone": lambda: peers.rclone(origin, work),
                "dsfs": lambda: peers.dsfs(origin, work, "auto"),
            }
            for name, start in columns.items():
                if args.only and name not in args.only:
                    continue
                data.drop_caches()
                with start() as root:
                    cells[name] = {}
                    for row, cell in measure(root):
                        cells[name][row] = cell
                        progress(f"{name:8} {row:42} {cell}")
    say(f"{circumstances()}, origin {args.origin}; samples/s, accelerator use\n")
    table = Table("loader", *cells)
    for row in next(iter(cells.values())):
        table.row(row, *(column[row] for column in cells.values()))


if __name__ == "__main__":
    main()
