"""Other ways to keep a mask: each writes bytes, and reads the indices of every layer from them."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import constriction
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pyroaring
import safetensors.numpy
import zstandard

from cones_registry import ConceptMask, LayerTable, bitmap
from cones_registry.codec.blocks import Blocks
from cones_registry.codec.clusters import find_clusters

Indices = list[npt.NDArray[np.int32]]


@dataclass(frozen=True)
class Rival:
    """A name, a writer, and a reader that is given the layer table."""

    name: str
    write: Callable[[ConceptMask], bytes]
    read: Callable[[bytes, LayerTable], Indices]


def _indices(mask: ConceptMask) -> dict[str, npt.NDArray[np.int32]]:
    return {name: mask.indices(name) for name in mask.table.names}


def _write_int32(mask: ConceptMask) -> bytes:
    counts = mask.counts.astype("<i4").tobytes()
    return counts + b"".join(each.astype("<i4").tobytes() for each in _indices(mask).values())


def _read_int32(data: bytes, table: LayerTable) -> Indices:
    values = np.frombuffer(data, dtype="<i4")
    counts, values = values[: len(table)], values[len(table) :]
    return np.split(values, np.cumsum(counts)[:-1])


def _write_npz(mask: ConceptMask) -> bytes:
    sink = io.BytesIO()
    np.savez_compressed(sink, allow_pickle=False, **_indices(mask))
    return sink.getvalue()


def _read_npz(data: bytes, table: LayerTable) -> Indices:
    with np.load(io.BytesIO(data)) as arrays:
        return [arrays[name] for name in table.names]


def _read_safetensors(data: bytes, table: LayerTable) -> Indices:
    arrays = safetensors.numpy.load(data)
    return [arrays[name] for name in table.names]


def _write_roaring(mask: ConceptMask) -> bytes:
    parts = []
    for indices in _indices(mask).values():
        members = pyroaring.BitMap(indices.astype(np.uint32))
        members.run_optimize()
        part = members.serialize()
        parts.append(struct.pack("<I", len(part)) + part)
    return b"".join(parts)


def _read_roaring(data: bytes, table: LayerTable) -> Indices:
    found, start = [], 0
    for _ in table.names:
        (size,) = struct.unpack_from("<I", data, start)
        members = pyroaring.BitMap.deserialize(data[start + 4 : start + 4 + size])
        found.append(np.frombuffer(members.to_array(), dtype=np.uint32).astype(np.int32))
        start += 4 + size
    return found


def _write_parquet(mask: ConceptMask) -> bytes:
    sink = io.BytesIO()
    names = np.repeat(np.array(mask.table.names), mask.counts)
    index = np.concatenate(list(_indices(mask).values()))
    pq.write_table(pa.table({"layer": names, "index": index}), sink)
    return sink.getvalue()


def _read_parquet(data: bytes, table: LayerTable) -> Indices:
    columns = pq.read_table(io.BytesIO(data), read_dictionary=["layer"])
    layer = columns["layer"].combine_chunks()
    places = {name: table.position(name) for name in layer.dictionary.to_pylist()}
    places = np.array(list(places.values()), dtype=np.int64)[layer.indices.to_numpy()]
    counts = np.bincount(places, minlength=len(table))
    return np.split(columns["index"].to_numpy(), np.cumsum(counts)[:-1])


def _read_bitmap(data: bytes, table: LayerTable) -> Indices:
    words = np.frombuffer(zstandard.decompress(data), dtype="<u8")
    parts = np.split(words, table.word_starts[1:])
    return [bitmap.unpack_positions(part).astype(np.int32) for part in parts]


RIVALS = (
    Rival("raw int32", _write_int32, _read_int32),
    Rival(
        "int32 + zstd 3",
        lambda mask: zstandard.compress(_write_int32(mask), 3),
        lambda data, table: _read_int32(zstandard.decompress(data), table),
    ),
    Rival("npz, compressed", _write_npz, _read_npz),
    Rival("safetensors", lambda mask: safetensors.numpy.save(_indices(mask)), _read_safetensors),
    Rival("roaring", _write_roaring, _read_roaring),
    Rival("Parquet, defaults", _write_parquet, _read_parquet),
    Rival(
        "bitmap + zstd 3",
        lambda mask: zstandard.compress(mask.words.tobytes(), 3),
        _read_bitmap,
    ),
)


def range_coded(mask: ConceptMask) -> tuple[int, float]:
    """(bytes, seconds to decode) of the blocks of layout `class` through a range coder.

    What an entropy coder could gain: every neuron of every block is coded with the density of its
    block, by `constriction`, in one call a block; 2 bytes of density a block, labels of rows and
    columns at their entropy, and 1,200 bytes for a file around it.
    """
    coder = constriction.stream.queue.RangeEncoder()
    models: list[tuple[Any, int]] = []
    extra = 1200.0
    for layer in mask.table.layers:
        rows, cols = np.divmod(mask.indices(layer.name).astype(np.int64), layer.cols)
        clusters = find_clusters(rows, cols, (layer.rows, layer.cols))
        count = clusters.row_classes * clusters.col_classes
        blocks = Blocks(clusters, np.arange(count, dtype=np.uint8))
        dense = mask.to_dense(layer.name)
        for labels in (clusters.rows, clusters.cols):
            shares = np.bincount(labels) / len(labels)
            extra += -float((shares * np.log2(shares)).sum()) * len(labels) / 8
        extra += 2 * count
        for block in range(count):
            flags = blocks.flags(block, dense)
            if 0 < np.count_nonzero(flags) < len(flags):
                model = constriction.stream.model.Bernoulli(float(flags.mean()), perfect=False)
                coder.encode(flags.astype(np.int32), model)
                models.append((model, len(flags)))
    words = coder.get_compressed()
    return int(4 * len(words) + extra), _decode_seconds(words, models)


def _decode_seconds(words: npt.NDArray[np.uint32], models: list[tuple[Any, int]]) -> float:
    from time import process_time

    start = process_time()
    decoder = constriction.stream.queue.RangeDecoder(words)
    for model, count in models:
        decoder.decode(model, count)
    return process_time() - start
