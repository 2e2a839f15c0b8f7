"""Figures of compositions and of registries. Needs the extra `plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cones_registry.errors import StoreUnavailableError, UsageError
from cones_registry.layers import short_layer_name

if TYPE_CHECKING:
    from cones_registry.registry.statistics import Statistics
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
    words = [[""] * len(refs) for _ in refs]
    for pair in composition.overlaps:
        first, second = refs.index(pair.first), refs.index(pair.second)
        shares[first][second] = shares[second][first] = pair.jaccard
        text = f"{pair.jaccard:.3f}\n({pair.expected_jaccard:.3f})"
        words[first][second] = words[second][first] = text
    largest = max((pair.jaccard for pair in composition.overlaps), default=1.0) or 1.0
    left.imshow(shares, cmap="Blues", vmin=0, vmax=1.5 * largest)
    left.set_xticks(range(len(refs)), refs, rotation=30, ha="right")
    left.set_yticks(range(len(refs)), refs)
    left.set_title("neurons shared / neurons of both (by chance)")
    for row, texts in enumerate(words):
        for column, text in enumerate(texts):
            dark = shares[row][column] > 0.9 * largest
            left.text(
                *(column, row, text),
                ha="center",
                va="center",
                fontsize=9 if len(refs) <= 6 else 5,
                color="white" if dark else "black",
            )
    layers = list(composition.density_by_layer)
    positions = range(len(layers))
    right.barh(positions, [100 * composition.density_by_layer[layer] for layer in layers])
    right.set_yticks(positions, [short_layer_name(layer) for layer in layers], fontsize=6)
    right.invert_yaxis()
    right.axvline(100 * composition.density, color="black", linewidth=0.8, linestyle="--")
    right.set_xlabel("% of the layer's neurons that are shut (dashed: all layers)")
    right.set_title("density by layer")
    _save(figure, path)


def draw_statistics(
    found: Statistics,
    path: Path,
    *,
    forms: Sequence[tuple[str, int]],
    densities: Sequence[str],
) -> None:
    """Bytes of each form on a logarithmic axis, and how many versions have which density.

    Args:
        found: what a registry holds.
        forms: (name, bytes) of what the versions take here, and in other forms.
        densities: names of the classes of `found.densities`.
        path: PNG, SVG or PDF by its suffix.

    Raises:
        UsageError: another suffix, or an empty registry. StoreUnavailableError: the file cannot be
            written.
    """
    from cones_registry.quantities import size

    if not found.versions:
        raise UsageError("an empty registry has no sizes to draw. Push a concept first")
    figure = _figure(path, 12, 4.5)
    left, right = figure.subplots(1, 2, width_ratios=[1.4, 1])
    names, sizes = zip(*forms, strict=True)
    colours = ["tab:green", *["tab:gray"] * (len(sizes) - 1)]
    left.barh(range(len(sizes)), [max(taken, 1) for taken in sizes], color=colours, log=True)
    left.set_yticks(range(len(sizes)), names)
    left.invert_yaxis()
    left.set_xlim(max(min(sizes), 1) / 10, 100 * max(sizes))
    for place, taken in enumerate(sizes):
        saved = f", {1 - found.used_bytes / taken:.1%} saved" if place and taken else ""
        left.text(max(taken, 1) * 1.3, place, size(taken) + saved, va="center", fontsize=9)
    left.set_xlabel("bytes (logarithmic)")
    left.set_title(f"{found.versions:,} versions of {found.concepts:,} concepts as")
    right.bar(range(len(found.densities)), found.densities)
    labels = [name.replace(" to ", "–").replace("up–", "≤ ") for name in densities]
    right.set_xticks(range(len(labels)), labels, rotation=30, ha="right", fontsize=8)
    right.set_ylabel("versions")
    right.yaxis.get_major_locator().set_params(integer=True)
    right.set_title("density of their masks")
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
