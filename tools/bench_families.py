"""What a masked row costs in a step: a model with cached text K/V, and one with joint attention.

Both are small transformers of their family's own classes with random weights. Every figure is the
median of pairs, stock and served taking turns in one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import measured
import numpy as np
import torch

from cones_registry import ConceptMask, LayerTable
from cones_registry.attention import RowEdit, edited, is_cached, mask_weights

BATCH, PICTURE, TEXT, WIDTH, BLOCKS = 4, 16, 77, 256, 4


def cached() -> tuple[Any, dict[str, Any]]:
    """A transformer as Sana has it, and the arguments of one step."""
    from diffusers import SanaTransformer2DModel

    model = SanaTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=BLOCKS,
        num_attention_heads=WIDTH // 32,
        attention_head_dim=32,
        num_cross_attention_heads=WIDTH // 64,
        cross_attention_head_dim=64,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=PICTURE,
    )
    return model, {
        "hidden_states": torch.randn(BATCH, 16, PICTURE, PICTURE),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, WIDTH),
        "timestep": torch.full((BATCH,), 500.0),
    }


def joint() -> tuple[Any, dict[str, Any]]:
    """A transformer as Stable Diffusion 3 has it, and the arguments of one step."""
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=PICTURE,
        patch_size=1,
        in_channels=16,
        out_channels=16,
        num_layers=BLOCKS,
        attention_head_dim=64,
        num_attention_heads=WIDTH // 64,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=64,
    )
    return model, {
        "hidden_states": torch.randn(BATCH, 16, PICTURE, PICTURE),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, WIDTH),
        "pooled_projections": torch.randn(BATCH, 64),
        "timestep": torch.full((BATCH,), 500.0),
    }


def random_mask(table: LayerTable, density: float, seed: int) -> ConceptMask:
    """So many members of each layer, by chance."""
    generator = np.random.default_rng(seed)
    return ConceptMask.from_indices(
        table,
        {
            layer.name: np.flatnonzero(generator.random(layer.neuron_count) < density).astype(
                np.int32
            )
            for layer in table
        },
    )


def seconds(step: Callable[[], Any]) -> float:
    """Of one call."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


@click.command()
@click.option("--repeats", default=15, show_default=True)
@click.option("--density", default=0.1, show_default=True)
@click.option("--write", is_flag=True, help="Keep the rows in tools/results.")
@torch.no_grad()
def main(repeats: int, density: float, write: bool) -> None:
    """Measure steps without masks, and with some rows of every picture masked."""
    lines = [
        "| text K/V | masked rows per picture | served / stock, a step | ms a step, stock |",
        "|---|---|---|---|",
    ]
    found = []
    for make in (cached, joint):
        torch.manual_seed(0)
        model, arguments = make()
        model.requires_grad_(False).eval()
        masks = [random_mask(LayerTable.from_unet(model), density, seed) for seed in range(BATCH)]
        for count in (0, 2, 8, TEXT):
            edits = []
            for entry, mask in enumerate(masks if count else []):
                rows = torch.zeros(BATCH, TEXT, dtype=torch.bool)
                rows[entry, :count] = True
                edits.append(RowEdit(mask_weights(mask), rows))
            served = edited(model, edits, once=is_cached(model))
            served(**arguments), model(**arguments)
            pairs = [
                (seconds(lambda: served(**arguments)), seconds(lambda: model(**arguments)))  # noqa: B023
                for _ in range(repeats)
            ]
            ratio = statistics.median(one / two for one, two in pairs)
            stock = statistics.median(two for _, two in pairs)
            lines.append(f"| {make.__name__} | {count} | {ratio:.3f} | {1000 * stock:.1f} |")
            found.append(
                {"way": make.__name__, "rows": count, "ratio": ratio, "stock_seconds": stock}
            )
    click.echo("\n".join(lines))
    if write:
        machine = measured.machine()
        head = (
            "# A step with masked rows\n\n"
            f"Random transformers of {BLOCKS} blocks, {WIDTH} wide, batch {BATCH}, {PICTURE}² "
            f"picture rows, {TEXT} text rows; another mask of density {density} for every picture; "
            f"medians of {repeats} pairs. {machine}; torch {torch.__version__}.\n\n"
            "Cached: K and V are projected at the first step, which is not counted. Joint: the "
            "masked rows are projected again with W ∘ M at every step.\n\n"
        )
        record = {"machine": machine, "torch": torch.__version__, "density": density, "rows": found}
        measured.keep("families", record, head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
