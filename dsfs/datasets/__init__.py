"""A name becomes a revision that this caller may see."""
