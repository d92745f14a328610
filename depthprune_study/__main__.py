"""`python -m depthprune_study` is the command `depthprune`."""

from depthprune_study.cli import main

main()
