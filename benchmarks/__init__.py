"""dsfs side by side with the raw disk, a plain download and its peers: ``python -m benchmarks --help``."""
