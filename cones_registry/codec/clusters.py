"""Grouping the rows and columns of a layer into classes of like density.

What is coded is a block at a time (the rows of one class by the columns of another), as if its
neurons were equally likely to be members. Classes are found by alternation: with the columns fixed
every row goes to the class that codes it in fewest bits, its own class number included; then the
columns, and so on. This is entropy-constrained vector quantisation (Chou, Lookabaugh and Gray,
1989) with the Bernoulli code length as distortion; it starts from one class, and splits classes in
two (Linde, Buzo and Gray, 1980) for as long as that pays.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Table = npt.NDArray[np.float64]

MAX_CLASSES: Final = 16
"""Classes of rows, and of columns."""
MAX_SIDE: Final = 8192
"""Rows, and columns, of a layer: what a reader keeps about each of them stays within its bounds."""

_ROUNDS: Final = 3
"""Alternations after a split."""
_BLOCK_BITS: Final = 6
"""What one block costs in the table of blocks, about."""


@dataclass(frozen=True)
class Clusters:
    """Class of each row, int64 [rows], and of each column, int64 [cols], counted from 0."""

    rows: Labels
    cols: Labels
    row_classes: int
    col_classes: int


def find_clusters(rows: Labels, cols: Labels, shape: tuple[int, int]) -> Clusters:
    """The clusters that code the members of a layer in few bits.

    Args:
        rows, cols: int64 [n], where each member stands.
        shape: rows and columns of the layer.
    """
    best = Clusters(np.zeros(shape[0], np.int64), np.zeros(shape[1], np.int64), 1, 1)
    fewest = _bits(rows, cols, best)
    tries = [_split_rows, _split_cols]
    while tries:
        split = tries.pop(0)
        clusters = _alternate(rows, cols, split(best, rows, cols))
        bits = _bits(rows, cols, clusters)
        if bits < fewest:
            fewest, best = bits, clusters
            tries = (
                [_split_cols, _split_rows] if split is _split_rows else [_split_rows, _split_cols]
            )
    return best


def _split_rows(clusters: Clusters, rows: Labels, cols: Labels) -> Clusters:
    labels, classes = _split(clusters.rows, np.bincount(rows, minlength=len(clusters.rows)))
    return Clusters(labels, clusters.cols, classes, clusters.col_classes)


def _split_cols(clusters: Clusters, rows: Labels, cols: Labels) -> Clusters:
    labels, classes = _split(clusters.cols, np.bincount(cols, minlength=len(clusters.cols)))
    return Clusters(clusters.rows, labels, clusters.row_classes, classes)


def _split(labels: Labels, counts: npt.NDArray[Any]) -> tuple[Labels, int]:
    """Every class in two: lines with more members than its mean, and the others."""
    means = np.bincount(labels, weights=counts) / np.maximum(np.bincount(labels), 1)
    split, classes = _compact(2 * labels + (counts > means[labels]))
    return (split, classes) if classes <= MAX_CLASSES else (labels, int(labels.max()) + 1)


def _alternate(rows: Labels, cols: Labels, start: Clusters) -> Clusters:
    row_labels, col_labels = start.rows, start.cols
    for _ in range(_ROUNDS):
        row_labels = _assign(
            rows, cols, row_labels, col_labels, start.row_classes, start.col_classes
        )
        col_labels = _assign(
            cols, rows, col_labels, row_labels, start.col_classes, start.row_classes
        )
    row_labels, row_classes = _compact(row_labels)
    col_labels, col_classes = _compact(col_labels)
    return Clusters(row_labels, col_labels, row_classes, col_classes)


def _assign(
    lines: Labels, across: Labels, labels: Labels, fixed: Labels, classes: int, fixed_classes: int
) -> Labels:
    """The cheapest class of each line (row or column), the classes of the other side fixed."""
    line_count = len(labels)
    counts = np.bincount(
        lines * fixed_classes + fixed[across], minlength=line_count * fixed_classes
    )
    counts = counts.reshape(line_count, fixed_classes).astype(np.float64)
    widths = np.bincount(fixed, minlength=fixed_classes).astype(np.float64)
    sizes = np.bincount(labels, minlength=classes).astype(np.float64)
    members = np.zeros((classes, fixed_classes))
    np.add.at(members, labels, counts)
    # Half a member more than there are, so that no block is certain to be empty or full.
    density = (members + 0.5) / (np.outer(sizes, widths) + 1)
    on, off = -np.log2(density), -np.log2(1 - density)
    label_bits = -np.log2((sizes + 0.5) / (line_count + 0.5 * classes))
    cost: Table = counts @ (on - off).T + off @ widths + label_bits
    cheapest: Labels = cost.argmin(axis=1)
    return cheapest


def _compact(labels: Labels) -> tuple[Labels, int]:
    """Labels without those that no line has."""
    used, compact = np.unique(labels, return_inverse=True)
    return compact.astype(np.int64), len(used)


def _bits(rows: Labels, cols: Labels, clusters: Clusters) -> float:
    """Bits that the members and the labels take, about."""
    blocks = clusters.rows[rows] * clusters.col_classes + clusters.cols[cols]
    block_count = clusters.row_classes * clusters.col_classes
    members = np.bincount(blocks, minlength=block_count).astype(np.float64)
    heights = np.bincount(clusters.rows, minlength=clusters.row_classes)
    widths = np.bincount(clusters.cols, minlength=clusters.col_classes)
    cells = np.outer(heights, widths).reshape(-1).astype(np.float64)
    data = _entropy_bits(members, cells) + _entropy_bits(cells - members, cells)
    labels = sum(
        _entropy_bits(sizes.astype(np.float64), np.full(len(sizes), float(sizes.sum())))
        for sizes in (heights, widths)
    )
    return data + labels + _BLOCK_BITS * block_count


def _entropy_bits(part: Table, whole: Table) -> float:
    """Sum of part * log2(whole / part)."""
    some = part > 0
    return float((part[some] * np.log2(whole[some] / part[some])).sum())
