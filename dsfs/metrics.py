"""Every metric: name, unit, labels. Declared here, counted where things happen, exposed by the daemon.

Label values come from closed sets: ``namespace`` and ``dataset`` from manifests, ``tier`` from model.Tier,
``operation`` from the opcode table, ``outcome`` from OUTCOMES, ``errno`` from errno's names, ``pod`` from the pods of
this node, of which no more than some hundred are kept (daemon/opens.py). Base units: bytes and seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from prometheus_client import Counter, Gauge, Histogram, Info

OUTCOMES = ("ok", "refused", "missing", "changed", "timeout", "later", "failed", "cancelled")

_DATASET = ("namespace", "dataset")
# From an answer out of memory (tens of microseconds) to what nobody should have to wait for.
_SECONDS = (
    *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
# From a cache in the same rack to a request that ran into the read timeout.
_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

READ_BYTES = Counter(
    "dsfs_read_bytes", "Bytes the daemon gave the kernel, by where they came from.", (*_DATASET, "tier")
)
KERNEL_OPENED_BYTES = Counter(
    "dsfs_kernel_opened_bytes", "Sizes of the files handed to the kernel in passthrough, in bytes.", _DATASET
)
OPENS = Counter(
    "dsfs_opens",
    "Files opened in a dataset that the kernel serves without asking (openless), by pod; pod is empty outside of one.",
    (*_DATASET, "pod"),
)
OPENED_BYTES = Counter(
    "dsfs_opened_bytes", "Sizes of the files counted in dsfs_opens_total, in bytes.", (*_DATASET, "pod")
)
OPENS_WATCHED = Gauge(
    "dsfs_opens_watched",
    "Share of the time in which opens are watched: 1 all, 0.1 sampled and scaled up, 0 not at all.",
    _DATASET,
)
OPEN_OVERFLOWS = Counter(
    "dsfs_open_overflows", "How often the kernel's queue of opens overflowed; opens are missing from the counts then."
)
ORIGIN_READ_BYTES = Counter("dsfs_origin_read_bytes", "Bytes read from the source.", _DATASET)
ORIGIN_REQUESTS = Counter(
    "dsfs_origin_requests",
    "Requests to the source, by how they ended; listing all of it is one, and so is asking for the hash of a file.",
    (*_DATASET, "outcome"),
)
ORIGIN_REQUEST_SECONDS = Histogram(
    "dsfs_origin_request_seconds",
    "Duration of requests to the source, in seconds; without those that list all of it or ask for a hash.",
    _DATASET,
    buckets=_REQUEST_SECONDS,
)
HEDGED_REQUESTS = Counter(
    "dsfs_origin_hedged_requests",
    "Requests that were late and so were sent once more, by which of the two got somewhere: first or second.",
    (*_DATASET, "faster"),
)
COURIER_FILES = Counter(
    "dsfs_courier_files",
    "Small files that the process beside the server was sent for: stored, or fetched otherwise after that.",
    ("outcome",),
)
OPERATION_SECONDS = Histogram(
    "dsfs_operation_seconds",
    "Duration of file system operations in the daemon, in seconds.",
    ("operation",),
    buckets=_SECONDS,
)
ERRORS = Counter(
    "dsfs_errors",
    "Operations that failed, by errno; what programs expect (ENOENT, ENODATA, ENOSYS, EINTR, ERANGE, ENOTTY, "
    "ENAMETOOLONG) is no failure.",
    (*_DATASET, "errno"),
)
PREFETCH_BYTES = Counter(
    "dsfs_prefetch_bytes", "Bytes brought in ahead of a read that may come, by policy.", (*_DATASET, "policy")
)
PREFETCH_WASTED_BYTES = Counter(
    "dsfs_prefetch_wasted_bytes", "Of those, what was not read while it was expected.", (*_DATASET, "policy")
)
CACHE_BYTES = Gauge("dsfs_cache_bytes", "Bytes in use, by tier.", ("tier",))
CACHE_PINNED_BYTES = Gauge(
    "dsfs_cache_pinned_bytes", "Space in the node tier that all that is pinned takes once it is here, in bytes."
)
CACHE_LIMIT_BYTES = Gauge("dsfs_cache_limit_bytes", "Bytes that may be used, by tier.", ("tier",))
EVICTED_BYTES = Counter("dsfs_cache_evicted_bytes", "Bytes that were given back to make room.")
CORRUPT_BLOCKS = Counter("dsfs_cache_corrupt_blocks", "Cached blocks or objects that failed a check and were dropped.")
SCRUBBED_BYTES = Counter("dsfs_cache_scrubbed_bytes", "Cached bytes that the background check has looked at.")
SCRUB_ROUNDS = Counter("dsfs_cache_scrub_rounds", "How often the background check has come to the end of the cache.")
CACHE_DEVICE_READ_BYTES = Counter(
    "dsfs_cache_device_read_bytes",
    "Bytes read from the block device under the cache since this server started, by whomever.",
    ("device",),
)
CACHE_DEVICE_WRITTEN_BYTES = Counter(
    "dsfs_cache_device_written_bytes",
    "Bytes written to the block device under the cache since this server started, by whomever.",
    ("device",),
)
DATASET_INFO = Gauge(
    "dsfs_dataset_info",
    "1 for each dataset; what it is in the labels.",
    (*_DATASET, "revision", "phase", "source_type"),
)
DATASET_BYTES = Gauge("dsfs_dataset_bytes", "Sum of the sizes of a dataset's files, in bytes.", _DATASET)
DATASET_CACHED_BYTES = Gauge("dsfs_dataset_cached_bytes", "Bytes of a dataset in the node's cache.", _DATASET)
DATASET_PINNED_BYTES = Gauge(
    "dsfs_dataset_pinned_bytes", "Bytes of a dataset that are here and that it has pinned.", _DATASET
)
DATASET_LISTED_SECONDS = Gauge(
    "dsfs_dataset_listed_timestamp_seconds",
    "When what a dataset shows was last listed, or found to be what its source has (Unix time); 0: never yet.",
    _DATASET,
)
DATASET_RESYNC_FAILURES = Gauge(
    "dsfs_dataset_resync_failures",
    "How often in a row listing a dataset's source has failed; 0: the last time it did not.",
    _DATASET,
)
WAITING_REQUESTS = Gauge("dsfs_waiting_requests", "Requests of the kernel that are not answered yet.", _DATASET)
OLDEST_REQUEST_SECONDS = Gauge(
    "dsfs_oldest_request_seconds", "How long the oldest request that is not answered yet has waited.", _DATASET
)
GAUGES_OF_DATASETS = (
    DATASET_BYTES,
    DATASET_CACHED_BYTES,
    DATASET_PINNED_BYTES,
    DATASET_LISTED_SECONDS,
    DATASET_RESYNC_FAILURES,
    WAITING_REQUESTS,
    OLDEST_REQUEST_SECONDS,
)
"""All with the labels namespace and dataset alone: what goes with a dataset that is deleted."""
SERVER_RESTARTS = Counter("dsfs_server_restarts", "How often the keeper started another server.")
CACHE_TROUBLE = Gauge("dsfs_cache_trouble", "1 while the cache directory refuses what is to be stored or read.")
MANIFESTS_TROUBLE = Gauge(
    "dsfs_manifests_trouble",
    "1 while the manifests that dsfs serve was started with cannot be read, or were not followed.",
)
SHARED_READ_BYTES = Counter("dsfs_shared_read_bytes", "Bytes taken from the shared tier into the node's.", _DATASET)
SHARED_WRITTEN_BYTES = Counter("dsfs_shared_written_bytes", "Bytes that this node gave to the shared tier.")
SHARED_TROUBLE = Gauge("dsfs_shared_trouble", "1 while the shared tier, or writing to it, does not work.")
BUILD = Info("dsfs_build", "What runs here: the version of dsfs, and how it speaks to the kernel.")


K = TypeVar("K")
V = TypeVar("V")


class Children(dict[K, V]):
    """The children of one metric by label value, made when they are first used: what never happens makes no series."""

    def __init__(self, make: Callable[[K], V]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: K) -> V:
        child = self[key] = self._make(key)
        return child
