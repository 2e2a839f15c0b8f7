"""Classes of rows and columns as bytes: digits to the base of the number of classes."""

from functools import cache
from typing import Final

import numpy as np

from cones_registry.codec.clusters import MAX_CLASSES, MAX_SIDE, Clusters
from cones_registry.codec.gaps import Bytes, Positions
from cones_registry.errors import CorruptDataError
from cones_registry.layers import Layer

_LABELS_PER_BYTE: Final = (0, 0, 8, 5, 4, 3, 3, *[2] * 10)
"""Labels of 2, 3, … classes that fit one byte."""


def pack_labels(labels: Positions, classes: int) -> bytes:
    """As many labels to a byte as fit, the first lowest; the last byte is filled up with 0."""
    per_byte = _LABELS_PER_BYTE[classes]
    if not per_byte:
        return b""
    digits = np.zeros((-(-len(labels) // per_byte), per_byte), dtype=np.int64)
    digits.reshape(-1)[: len(labels)] = labels
    return (digits @ classes ** np.arange(per_byte)).astype(np.uint8).tobytes()


def unpack_labels(data: Bytes, classes: int, count: int) -> Positions:
    """Inverse of `pack_labels`; `CorruptDataError` for anything else."""
    per_byte = _LABELS_PER_BYTE[classes]
    expected = -(-count // per_byte) if per_byte else 0
    if len(data) != expected:
        raise CorruptDataError(f"{count} labels take {len(data)} bytes; expected {expected}")
    if not per_byte:
        return np.zeros(count, dtype=np.int64)
    try:
        labels: Positions = _digits(classes).take(data, axis=0).reshape(-1)
    except IndexError:
        raise CorruptDataError(f"a label is not one of {classes} classes") from None
    if len(labels) > count and labels[count:].any():
        raise CorruptDataError("the labels do not end with the last row or column")
    return labels[:count]


def read_clusters(head: Bytes, row_cell: Bytes, col_cell: Bytes, layer: Layer) -> Clusters:
    """The classes of a layer: their numbers are the first two bytes of `head`."""
    if max(layer.rows, layer.cols) > MAX_SIDE:
        raise CorruptDataError(
            f"{layer.rows} rows and {layer.cols} columns; layout 'class' has at most {MAX_SIDE}"
        )
    row_classes, col_classes = [*head[:2].tolist(), 0, 0][:2]
    classes = range(1, MAX_CLASSES + 1)
    if row_classes not in classes or col_classes not in classes:
        raise CorruptDataError(f"the table of blocks says {row_classes} by {col_classes} classes")
    return Clusters(
        unpack_labels(row_cell, row_classes, layer.rows),
        unpack_labels(col_cell, col_classes, layer.cols),
        row_classes,
        col_classes,
    )


@cache
def _digits(classes: int) -> Positions:
    """Labels that each byte holds, int64 [bytes, labels per byte]."""
    powers = classes ** np.arange(_LABELS_PER_BYTE[classes])
    digits: Positions = np.arange(classes * powers[-1])[:, None] // powers % classes
    return digits
