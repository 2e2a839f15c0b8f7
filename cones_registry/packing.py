"""Indices, flags and factors, given layer by layer, as the packed words and the row of a table."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cones_registry import bitmap
from cones_registry.bitmap import Words
from cones_registry.errors import UsageError
from cones_registry.layers import LayerTable


def pack_indices(table: LayerTable, indices: Mapping[str, npt.NDArray[Any]]) -> Words:
    """Words of `{layer: integer [n]}`, strictly increasing; a layer that is not named has none.

    Raises:
        NotFoundError: a layer that is not in the table.
        UsageError: indices that are unsorted, repeated, out of range or not integers.
    """
    words = np.zeros(table.word_count, dtype=np.uint64)
    for name, values in indices.items():
        position = table.position(name)
        layer, start = table.layers[position], table.word_starts[position]
        try:
            checked = bitmap.check_positions(np.asarray(values), layer.neuron_count)
        except UsageError as error:
            raise UsageError(f"layer {name!r}: {error}") from None
        words[start : start + layer.word_count] = bitmap.pack_positions(checked, layer.word_count)
    return words


def pack_flags(table: LayerTable, arrays: Mapping[str, npt.NDArray[np.bool_]]) -> Words:
    """Words of `{layer: bool [out, in]}`; a layer that is not named has no members.

    Raises:
        NotFoundError: a layer that is not in the table.
        UsageError: an array that is not bool or has another shape than its layer.
    """
    words = np.zeros(table.word_count, dtype=np.uint64)
    for name, flags in arrays.items():
        position = table.position(name)
        layer, start = table.layers[position], table.word_starts[position]
        flags = np.asarray(flags)
        if flags.dtype != np.bool_ or flags.shape != (layer.rows, layer.cols):
            raise UsageError(
                f"layer {name!r} gave {flags.dtype} {flags.shape}; "
                f"expected bool ({layer.rows}, {layer.cols})"
            )
        words[start : start + layer.word_count] = bitmap.pack_dense(flags.reshape(-1))
    return words


def join_factors(
    table: LayerTable,
    indices: Mapping[str, npt.NDArray[Any]],
    factors: Mapping[str, npt.NDArray[Any]],
) -> npt.NDArray[Any]:
    """Factors of all layers, float [n], in table order; 0 for layers that are left out.

    Raises:
        NotFoundError: a layer that is not in the table.
        UsageError: not one float for each index.
    """
    for name in factors:
        table.position(name)
    parts = []
    for layer in table.layers:
        count = len(indices.get(layer.name, ()))
        part = np.asarray(factors.get(layer.name, np.zeros(count, dtype=np.float16)))
        if part.shape != (count,) or part.dtype.kind != "f":
            raise UsageError(
                f"layer {layer.name!r} has {count} indices but factors {part.dtype} "
                f"{part.shape}; expected one float for each index"
            )
        parts.append(part)
    return np.concatenate(parts)


def reject_padding(table: LayerTable, words: Words) -> None:
    """Raise `UsageError` if bits are set between a layer's last neuron and its last word's end."""
    for layer, start in zip(table.layers, table.word_starts, strict=True):
        used = layer.neuron_count % bitmap.WORD_BITS
        if used and int(words[start + layer.word_count - 1]) >> used:
            raise UsageError(
                f"layer {layer.name!r} has bits set beyond its last neuron "
                f"{layer.neuron_count - 1}; the rest of its last word must be 0"
            )
