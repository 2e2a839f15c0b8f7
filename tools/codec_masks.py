"""Masks to measure the codec on: uniform, structured, and real ones of the demo's subjects."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cones_registry import BaseModel, ConceptMask, Extractor, LayerTable, load_file
from cones_registry.demo.learn import learn
from cones_registry.demo.subjects import SUBJECTS

DENSITIES = (0.001, 0.01, 0.05, 0.1)
SD1_UNET_PARAMETERS = 859_520_964
"""Stable Diffusion 1.x, all of its U-Net; the layer table knows the cross-attention alone."""

Scores = dict[str, npt.NDArray[np.float32]]


def sd1_table() -> LayerTable:
    """The 32 K and V weights of Stable Diffusion 1.x: 19,169,280 neurons."""
    blocks = [(f"down_blocks.{n}.attentions.{a}", 320 << n) for n in range(3) for a in range(2)]
    blocks.append(("mid_block.attentions.0", 1280))
    blocks += [(f"up_blocks.{n}.attentions.{a}", 2560 >> n) for n in (1, 2, 3) for a in range(3)]
    return LayerTable.from_shapes(
        {
            f"{block}.transformer_blocks.0.attn2.to_{kind}.weight": (width, 768)
            for block, width in blocks
            for kind in "kv"
        }
    )


def lora_bytes(table: LayerTable, *, rank: int = 4) -> int:
    """Float32 LoRA on query, key, value and output of the self- and cross-attention of each block.

    Each weight (out, in) takes rank · (out + in) parameters; all but the K and V of the layer table
    are (width, width), six to a block.
    """
    values = [layer for layer in table.layers if ".to_v." in layer.name]
    cross = sum(layer.rows + layer.cols for layer in table.layers)
    return 4 * rank * (cross + sum(6 * 2 * layer.rows for layer in values))


def uniform(table: LayerTable, density: float, *, seed: int = 0) -> ConceptMask:
    """A: every neuron is a member with the same probability."""
    rng = np.random.default_rng(seed)
    return ConceptMask.from_dense(
        {
            layer.name: rng.random((layer.rows, layer.cols), dtype=np.float32) < density
            for layer in table.layers
        }
    )


def structured_scores(
    table: LayerTable, *, row_sigma: float = 1.0, col_sigma: float = 1.0, seed: int = 0
) -> Scores:
    """Scores of B: θ ∘ (mean of 50 rank-1 gradients), with log-normal row and column scales."""
    rng = np.random.default_rng(seed)
    scores = {}
    for layer in table.layers:
        rows = rng.lognormal(0, row_sigma, (layer.rows, 1)).astype(np.float32)
        cols = rng.lognormal(0, col_sigma, (1, layer.cols)).astype(np.float32)
        left = rng.standard_normal((layer.rows, 50), dtype=np.float32) * rows
        right = rng.standard_normal((50, layer.cols), dtype=np.float32) * cols
        theta = rng.standard_normal((layer.rows, layer.cols), dtype=np.float32)
        scores[layer.name] = theta * (left @ right / 50)
    return scores


def structured(scores: Scores, density: float) -> ConceptMask:
    """B: the neurons with the highest scores, in all layers together."""
    values = np.concatenate([each.reshape(-1) for each in scores.values()])
    place = int(len(values) * (1 - density))
    threshold = np.partition(values, place)[place]
    return ConceptMask.from_dense({name: each > threshold for name, each in scores.items()})


def real_masks(folder: Path | None, steps: int) -> Iterator[tuple[str, ConceptMask]]:
    """(name, mask) of every mask file in `folder`, or of the demo's subjects, learnt here."""
    if folder is not None:
        for path in sorted(folder.glob("*.parquet")):
            yield path.stem, load_file(path)
        return
    extractor = Extractor(BaseModel.load("demo"))
    for subject in SUBJECTS:
        extraction = learn(extractor, subject, (), steps=steps, progress=None)
        yield subject.name, extraction.mask


def bound_bytes(mask: ConceptMask) -> float:
    """log2 of the number of masks with as many members, in bytes."""
    count, members = mask.table.neuron_count, len(mask)
    ways = math.lgamma(count + 1) - math.lgamma(members + 1) - math.lgamma(count - members + 1)
    return ways / math.log(2) / 8


def density_spreads(mask: ConceptMask) -> tuple[float, float]:
    """Variance of the density of rows, and of columns, over what a binomial would show.

    Mean over the layers that have members, weighted by them; 1 where members lie by chance.
    """
    found, weights = [], []
    for layer in mask.table.layers:
        dense = mask.to_dense(layer.name)
        density = float(dense.mean())
        if 0 < density < 1:
            chance = density * (1 - density)
            rows = float(dense.mean(axis=1).var()) * layer.cols / chance
            cols = float(dense.mean(axis=0).var()) * layer.rows / chance
            found.append((rows, cols))
            weights.append(mask.count(layer.name))
    rows, cols = np.average(np.array(found), axis=0, weights=np.array(weights)).tolist()
    return rows, cols
