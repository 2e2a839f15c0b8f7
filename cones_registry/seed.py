"""Seeds: what the catalogue, the schemas and torch's generators all hold."""

from typing import Final

MAX_SEED: Final = 2**63 - 1
"""The last seed; the first is 0."""
