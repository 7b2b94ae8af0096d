"""The control interface: HTTP on a unix socket for the command line, on TCP for Prometheus and browsers."""
