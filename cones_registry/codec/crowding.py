"""How much members crowd in some rows and columns: whether the layout `class` can pay."""

import math
from typing import Final

import numpy as np

from cones_registry.mask import ConceptMask

_CHANCE: Final = 1 / (2 * math.log(2))
"""Bits that one row seems to save where members lie by chance alone."""


def crowding_bits(mask: ConceptMask) -> float:
    """Bits saved by coding every row and column by its own density, not by that of its layer.

    To first order, without what it takes to say the densities: Σ c · log2(c / mean) over the counts
    c of members in rows, and in columns, less what chance alone would show.
    """
    bits = 0.0
    for layer in mask.table.layers:
        indices = mask.indices(layer.name)
        if not indices.size:
            continue
        rows = indices // layer.cols
        for lines, length in ((rows, layer.rows), (indices - rows * layer.cols, layer.cols)):
            counts = np.bincount(lines, minlength=length)
            counts = counts[counts > 0]
            gains = counts * np.log2(counts * (length / indices.size))
            bits += float(gains.sum()) - _CHANCE * (length - 1)
    return bits
