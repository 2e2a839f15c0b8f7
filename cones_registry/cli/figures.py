"""Figures of compositions. Needs the extra `plot`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cones_registry.errors import StoreUnavailableError, UsageError

if TYPE_CHECKING:
    from cones_registry.resolver import Composition

FORMATS = (".png", ".svg", ".pdf")


def draw_composition(composition: Composition, path: Path) -> None:
    """Overlap of each pair and density of each layer, side by side.

    Args:
        composition: what was resolved.
        path: PNG, SVG or PDF by its suffix.

    Raises:
        UsageError: another suffix. StoreUnavailableError: the file cannot be written.
    """
    figure = _figure(path, 12, 4.5)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.6])
    refs = composition.refs
    # Each with itself shares all, which says nothing: left white.
    shares = [[float("nan")] * len(refs) for _ in refs]
    for pair in composition.overlaps:
        first, second = refs.index(pair.first), refs.index(pair.second)
        shares[first][second] = shares[second][first] = pair.jaccard
    largest = max((pair.jaccard for pair in composition.overlaps), default=1.0) or 1.0
    left.imshow(shares, cmap="Blues", vmin=0, vmax=largest)
    left.set_xticks(range(len(refs)), refs, rotation=30, ha="right")
    left.set_yticks(range(len(refs)), refs)
    left.set_title("neurons shared / neurons of both (Jaccard)")
    for row, values in enumerate(shares):
        for column, value in enumerate(values):
            if row != column:
                dark = value > 0.6 * largest
                left.text(
                    *(column, row, f"{value:.3f}"),
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                )
    layers = list(composition.density_by_layer)
    positions = range(len(layers))
    right.barh(positions, [100 * composition.density_by_layer[layer] for layer in layers])
    right.set_yticks(positions, [_short(layer) for layer in layers], fontsize=6)
    right.invert_yaxis()
    right.axvline(100 * composition.density, color="black", linewidth=0.8, linestyle="--")
    right.set_xlabel("% of the layer's neurons that are shut (dashed: all layers)")
    right.set_title("density by layer")
    _save(figure, path)


def _figure(path: Path, width: float, height: float) -> Any:
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"cannot draw to {path}: expected a name that ends in {', '.join(FORMATS)}"
        )
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise StoreUnavailableError(f"cannot write {path}: {error.strerror}") from error


def _short(layer: str) -> str:
    """The part of a layer's path that tells layers apart."""
    kept = [
        part
        for part in layer.split(".")
        if part not in ("attentions", "transformer_blocks", "attn2", "weight")
    ]
    return ".".join(kept)
