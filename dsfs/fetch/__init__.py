"""A range becomes the blocks that are missing, and who brings them, in which order."""
