"""Timing, sizes and tables of `bench_codec.py`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import codec_masks as masks
import codec_rivals as rivals
import numpy as np

from cones_registry import ConceptMask, decode, encode
from cones_registry.codec import class_, decode_indices, gaps
from cones_registry.codec.kernels import compiled_kernels, load_kernels

REPEATS = 7
SECONDS = 0.1

Row = Sequence[str]


class Report:
    """Tables for the page, figures for the JSON file, and the targets that were missed."""

    def __init__(self) -> None:
        self.page: list[str] = []
        self.figures: dict[str, Any] = {}
        self.missed: list[str] = []

    def table(self, title: str, note: str, head: Row, rows: Sequence[Row]) -> None:
        """One section with one table."""
        lines = [head, ["---"] * len(head), *rows]
        self.page += [f"## {title}", "", note, ""]
        self.page += [f"| {' | '.join(line)} |" for line in lines]
        self.page.append("")
        sys.stderr.write("\n".join(["", title, *("  ".join(row) for row in [head, *rows])]) + "\n")

    def against(self, what: str, value: float, target: float | None, digits: int) -> str:
        """The figure, and the target where there is one."""
        shown = f"{value:.{digits}f}"
        if target is None:
            return shown
        if value > target:
            self.missed.append(f"{what}: {shown}, target {target:g}")
            return f"**{shown}** (> {target:g})"
        return f"{shown} (≤ {target:g})"


@contextmanager
def numpy_only() -> Iterator[None]:
    """Without compiled kernels, as if the extra `fast` were not installed."""
    gaps.compiled_kernels = class_.compiled_kernels = lambda byte_count: None
    try:
        yield
    finally:
        gaps.compiled_kernels = class_.compiled_kernels = compiled_kernels


def best(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds of the quickest of some calls: of so many, or as many as fit into `SECONDS`.

    Seconds on the processor, all threads together: by the clock, work of milliseconds would be left
    alone by a busy machine now and then, and the work it is compared with never.
    """
    times: list[float] = []
    while len(times) < repeats or sum(times) < SECONDS:
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def reference_seconds(mask: ConceptMask) -> float:
    """What numpy takes from the bitmap to sorted indices."""
    packed = mask.words.view(np.uint8)
    return best(lambda: np.flatnonzero(np.unpackbits(packed)))


def check_read(data: bytes, mask: ConceptMask) -> None:
    """What was written reads as what it was made from, with and without compiled kernels."""
    if load_kernels() is None:
        sys.exit("numba is not installed: pip install 'cones-registry[fast]'")
    with numpy_only():
        slow = decode(data)
    found = decode_indices(data)
    same = all(np.array_equal(found[name], mask.indices(name)) for name in mask.table.names)
    if not (slow == mask and decode(data) == mask and same):
        sys.exit("a layout does not read back what it wrote")


def measure_layout(mask: ConceptMask, layout: str) -> dict[str, float]:
    """Size over bound, seconds to encode, and decoding times over the reference's."""
    data = encode(mask, layout=layout)
    check_read(data, mask)
    once = 1 if layout == "plain" else REPEATS
    result = {
        "size": len(data) / masks.bound_bytes(mask),
        "encode": best(lambda: encode(mask, layout=layout), 2),
        "bitmap": best(lambda: decode(data, verify=False)) / reference_seconds(mask),
        "indices": best(lambda: decode_indices(data), once) / reference_seconds(mask),
    }
    with numpy_only():
        result["bitmap_numpy"] = best(lambda: decode(data, verify=False), once) / (
            reference_seconds(mask)
        )
    return result


def measure_rival(mask: ConceptMask, rival: rivals.Rival) -> dict[str, float]:
    """Size over bound, seconds to encode, and the time to indices over the reference's."""
    data = rival.write(mask)
    found = rival.read(data, mask.table)
    for name, indices in zip(mask.table.names, found, strict=True):
        if not np.array_equal(indices, mask.indices(name)):
            sys.exit(f"{rival.name} does not read back what it wrote")
    return {
        "size": len(data) / masks.bound_bytes(mask),
        "encode": best(lambda: rival.write(mask), 1),
        "indices": best(lambda: rival.read(data, mask.table), 3) / reference_seconds(mask),
    }
