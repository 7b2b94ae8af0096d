"""A block becomes bytes at an offset. Storage only: nothing in this room talks to a network."""
