"""Ranks as a column: four bit planes a layer, LSB first; one int32 a row in layout `plain`."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from cones_registry.codec.container import Column, Container, binary_column
from cones_registry.codec.layout import Contents
from cones_registry.errors import CorruptDataError, UsageError
from cones_registry.mask import ConceptMask
from cones_registry.ranking import LEVELS, Ranks

_BITS: Final = (LEVELS - 1).bit_length()


def rank_columns(mask: ConceptMask, ranks: Ranks, *, by_row: bool) -> dict[str, Column]:
    """The column that holds ranks, uint8 [n].

    Args:
        mask: n members.
        ranks: level of each.
        by_row: one row a member, as in layout `plain`; else one row a layer.

    Raises:
        UsageError: ranks of another length or type, or a level that is none.
    """
    if ranks.shape != (len(mask),) or ranks.dtype != np.uint8 or ranks.max(initial=0) >= LEVELS:
        raise UsageError(
            f"ranks are {ranks.dtype} {ranks.shape}; expected uint8 ({len(mask)},) below {LEVELS}"
        )
    if by_row:
        return {"rank": Column(pa.array(ranks.astype(np.int32)))}
    return {
        "ranks": binary_column(
            [
                b"".join(
                    np.packbits(part >> bit & 1, bitorder="little").tobytes()
                    for bit in range(_BITS)
                )
                for part in np.split(ranks, np.cumsum(mask.counts)[:-1])
            ]
        )
    }


def read_rank_columns(container: Container, contents: Contents) -> Ranks | None:
    """Inverse of `rank_columns`; None if the file has no ranks."""
    if "rank" in container:
        levels = container.integers("rank")
        if ((levels < 0) | (levels >= LEVELS)).any():
            raise CorruptDataError(f"a rank is not a level from 0 to {LEVELS - 1}")
        return levels.astype(np.uint8)
    if "ranks" not in container:
        return None
    parts = [np.empty(0, dtype=np.uint8)]
    for cell, count in zip(container.cells("ranks"), contents.counts.tolist(), strict=True):
        length = -(-count // 8)
        if len(cell) != _BITS * length:
            raise CorruptDataError(
                f"the ranks of a layer take {len(cell)} bytes; {count} members need "
                f"{_BITS * length}"
            )
        bits = np.unpackbits(cell.reshape(_BITS, length), axis=1, count=count, bitorder="little")
        parts.append(
            (bits << np.arange(_BITS, dtype=np.uint8)[:, None]).sum(axis=0, dtype=np.uint8)
        )
    return np.concatenate(parts)
