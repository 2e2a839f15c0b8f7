"""Hostile mask files, made by atheris: refused or read; no crash, no hang, no large allocation.

`tools/fuzz [seconds]` runs it; further arguments go to libFuzzer. Every input starts from a sound
file (golden, example or counter-example) and edits it. Checksums of pages are taken for right, as
whoever makes hostile files can make them right. What is checked:

* `decode` refuses the file with `CorruptDataError`, or reads a mask that encodes and decodes again;
* no more is allocated than 64 times the file and a bit for every neuron (and 2 MiB for Python's own
  objects, which small files need whatever they hold);
* no input takes longer than ten seconds.
"""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import atheris
import fuzzing

with atheris.instrument_imports(include=["cones_registry.codec"]):
    from cones_registry import ConceptMask, codec
    from cones_registry.codec import cells, container, gaps
    from cones_registry.codec.kernels import load_kernels

import pyarrow as pa
import pyarrow.parquet as pq

from cones_registry.errors import ConesError, CorruptDataError

ROOT = Path(__file__).resolve().parents[1]
SEEDS = [
    path.read_bytes()
    for folder in ("tests/golden", "schema/examples", "schema/bad")
    for path in sorted((ROOT / folder).glob("mask*.parquet"))
    if path.stat().st_size < 16_384
]
OWN_OBJECTS = 2 << 20
MEMORY = pa.default_memory_pool()


class AnyChecksum(int):
    """Equal to whatever it is compared with."""

    def __ne__(self, other: object) -> bool:
        return False


def take_checksums_for_right() -> None:
    """The edits of a hostile writer come with checksums that fit."""
    cells.zlib = SimpleNamespace(crc32=lambda content: AnyChecksum())

    def open_unchecked(*args: Any, **options: Any) -> pq.ParquetFile:
        return pq.ParquetFile(*args, **(options | {"page_checksum_verification": False}))

    container.pq = SimpleNamespace(ParquetFile=open_unchecked, ParquetWriter=pq.ParquetWriter)


def make_file(provider: atheris.FuzzedDataProvider) -> bytes:
    """A sound file with some bytes, or some words of its footer, replaced."""
    return fuzzing.edited(SEEDS, provider, edit_footer)


def edit_footer(data: bytearray, provider: atheris.FuzzedDataProvider) -> None:
    """Another number of the same length in the footer's JSON, so that every offset stays right."""
    numbers = list(re.finditer(rb'(?<=":)\d+', bytes(data)))
    if not numbers:
        return
    found = numbers[provider.ConsumeIntInRange(0, len(numbers) - 1)]
    size = found.end() - found.start()
    value = provider.ConsumeIntInRange(0, 10**size - 1)
    data[found.start() : found.end()] = f"{value:0{size}d}".encode()


def neuron_count(data: bytes) -> int:
    """What the footer claims; 0 for a footer that no reader accepts."""
    try:
        return int(codec.read_footer(data)["table_neuron_count"])
    except (ConesError, KeyError):
        return 0


def read(data: bytes, *, compiled: bool) -> ConceptMask | None:
    """The mask, or None for a file that is refused; everything else is a finding."""
    saved = gaps.compiled_kernels, codec.class_.compiled_kernels
    if not compiled:
        gaps.compiled_kernels = codec.class_.compiled_kernels = lambda byte_count: None
    try:
        return codec.decode(data, verify=False)
    except CorruptDataError as error:
        if not str(error):
            raise RuntimeError("refused without a reason") from error
        return None
    finally:
        gaps.compiled_kernels, codec.class_.compiled_kernels = saved


def try_one(raw: bytes) -> None:
    """One input of the fuzzer."""
    provider = atheris.FuzzedDataProvider(raw)
    data = make_file(provider)
    compiled = provider.ConsumeBool()
    allowed = container.MAX_EXPANSION * len(data) + neuron_count(data) // 8 + OWN_OBJECTS
    arrow_before = MEMORY.max_memory()
    tracemalloc.start()
    try:
        mask = read(data, compiled=compiled)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    arrow = MEMORY.max_memory()
    if peak > allowed or (arrow > arrow_before and arrow > allowed):
        raise MemoryError(f"{peak} and {arrow} bytes for a file of {len(data)}; {allowed} allowed")
    if mask is None:
        return
    if read(data, compiled=not compiled) != mask:
        raise RuntimeError("compiled and numpy code read different masks")
    if codec.decode(codec.encode(mask, layout="gap8")) != mask:
        raise RuntimeError("what was read does not survive being written")
    for name, indices in codec.decode_indices(data).items():
        if indices.tolist() != mask.indices(name).tolist():
            raise RuntimeError("indices and mask differ")


def main() -> None:
    # What is compiled or imported on first use does not count against the first input.
    load_kernels()
    for seed in SEEDS:
        read(seed, compiled=True)
    take_checksums_for_right()
    fuzzing.fuzz(try_one, megabytes=3000)


if __name__ == "__main__":
    main()
