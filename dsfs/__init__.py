"""dsfs: remote datasets as one read-only tree, cached at the speed of the local disk. See ARCHITECTURE.md."""
