"""How much members crowd in some rows and columns: whether the layout `class` can pay."""

import math
from typing import Final

import numpy as np

from cones_registry import bitmap
from cones_registry.mask import ConceptMask

_COUNTS: Final = np.arange(64)
_LOG_FACTORIALS: Final = np.concatenate(([0.0], np.cumsum(np.log(_COUNTS[1:]))))
_LARGE_MEAN: Final = 20
_MANY_ROWS: Final = 128


def crowding_bits(mask: ConceptMask) -> float:
    """Bits saved by coding every row and column by its own density, not by that of its layer.

    To first order, without what it takes to say the densities: Σ c · log2(c / mean) over the counts
    c of members in rows, and in columns, less what chance alone would show.
    """
    bits = 0.0
    for layer in mask.table.layers:
        words, step = mask.layer_words(layer.name), 1
        if layer.cols % bitmap.WORD_BITS == 0 and layer.rows >= _MANY_ROWS:
            # A quarter of the rows says as much.
            step = 4
            words = words.reshape(layer.rows, -1)[::step].reshape(-1)
        row_count = -(-layer.rows // step)
        dense = bitmap.unpack_dense(words, row_count * layer.cols).reshape(row_count, layer.cols)
        for axis, length in ((1, row_count), (0, layer.cols)):
            # In the narrowest type that holds every count: many times faster.
            narrow = np.uint16 if dense.shape[axis] < 2**16 else np.int64
            counts = dense.view(np.uint8).sum(axis=axis, dtype=narrow)
            counts = counts[counts > 0].astype(np.int64)
            mean = int(counts.sum()) / length
            if not mean:
                break
            gains = counts * np.log2(counts / mean)
            bits += step * (float(gains.sum()) - length * _by_chance(mean))
    return bits


def _by_chance(mean: float) -> float:
    """Expected c · log2(c / mean) where the count c of a line is Poisson distributed."""
    if mean > _LARGE_MEAN:
        return 0.5 / math.log(2)
    chances = np.exp(_COUNTS * math.log(mean) - mean - _LOG_FACTORIALS)
    return float(mean * (chances @ np.log2((_COUNTS + 1) / mean)))
