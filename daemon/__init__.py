"""The processes of dsfs: keeper, server, control interface, command line."""
