"""A name and an inode become an object and a range: what the tree means, decided once, under both sessions."""
