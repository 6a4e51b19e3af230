"""`python -m decant`, and so `accelerate launch -m decant`: the `decant` command."""

from decant.cli import main

main()
