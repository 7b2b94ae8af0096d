"""A kernel request becomes a call. Two sessions: ``direct`` speaks the protocol itself, ``pyfuse3`` uses libfuse."""
