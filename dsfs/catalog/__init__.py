"""A path becomes a row: the on-disk index of one revision of one dataset."""
