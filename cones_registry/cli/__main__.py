"""`python -m cones_registry.cli`, the same as `cones`."""

from . import main

main()
