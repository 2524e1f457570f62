"""`python -m layerwright`."""

from layerwright.cli import program

program()
