"""The fault lab: what can go wrong around a mount, made to go wrong. Used by the tests and by ``benchmarks.soak``."""
