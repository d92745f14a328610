"""Ours next to the plain loop, on one machine, in one run: `make bench`."""
