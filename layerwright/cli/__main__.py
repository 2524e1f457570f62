"""`python -m layerwright.cli`."""

from layerwright.cli import main

main()
