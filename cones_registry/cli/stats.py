"""`cones stats`: what a registry holds, and what it saves."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cones_registry.quantities import counted, share, size

from .output import Output
from .session import Session
from .verb import verb

if TYPE_CHECKING:
    from cones_registry.registry.statistics import Statistics

BAR = 30
"""Characters of the longest bar."""


@verb(reads=True)
@click.option(
    "--list-store", is_flag=True, help="List every object too: bytes of log and snapshots."
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw sizes and densities (PNG, SVG or PDF).",
)
def command(session: Session, list_store: bool, plot: Path | None) -> None:
    """Say how many concepts there are, what they take, and what they would take otherwise.

    Sizes of the other forms are of the same versions and computed from the base models' layer
    tables: int32 indices of the masks' members, the K/V weights, a LoRA of rank 4 on those, and the
    whole denoiser, all float32.
    """
    found = session.open(read_only=True).stats(list_store=list_store)
    output = session.output
    if plot is not None:
        from .figures import draw_statistics

        draw_statistics(found, plot, forms=forms(found), densities=density_names())
        output.message(f"drew {plot}")
    if output.as_json:
        output.document(found.to_json())
        return
    show(output, found)


def show(output: Output, found: Statistics) -> None:
    """Counts, sizes side by side, densities, owners."""
    output.fields(
        {
            "owners": f"{found.owners:,}",
            "concepts": f"{found.concepts:,}",
            "versions": f"{found.versions:,}",
            "removed": f"{found.removed:,}" if found.removed else "",
            "base models": f"{found.bases:,}",
            "masks": f"{counted(found.blobs, 'object')}, {size(found.blob_bytes)}",
        }
    )
    if not found.versions:
        return
    output.line("")
    output.table(
        ("the same versions as", "bytes", "a version", "saved here", "times smaller"),
        [
            (name, size(taken), size(taken // found.versions), *saved(found.used_bytes, taken))
            for name, taken in forms(found)
        ],
    )
    if found.unet_bytes is None:
        output.message(
            "How many parameters some base model has is not recorded, so whole denoisers cannot be "
            "compared. It is for concepts that are pushed with base=BaseModel"
        )
    output.line("")
    tallest = max(found.densities)
    output.table(
        ("density", "versions", ""),
        [
            (name, f"{count:,}", "█" * -(-count * BAR // tallest))
            for name, count in zip(density_names(), found.densities, strict=True)
        ],
    )
    output.line("")
    output.table(
        ("largest owners", "concepts", "versions", "bytes"),
        [
            (each.owner, f"{each.concepts:,}", f"{each.versions:,}", size(each.blob_bytes))
            for each in found.largest_owners
        ],
    )
    if found.stored:
        output.line("")
        output.table(
            ("in the store", "objects", "bytes"),
            [
                (name, f"{objects:,}", size(taken))
                for name, (objects, taken) in found.stored.items()
            ],
        )


def forms(found: Statistics) -> list[tuple[str, int]]:
    """What the versions take in this registry and in other forms, the smallest form first."""
    others = [
        ("int32 indices", found.raw_bytes),
        ("LoRA of rank 4 on K/V", found.lora_bytes),
        ("dense float32 K/V", found.dense_bytes),
    ]
    if found.unet_bytes is not None:
        others.append(("whole float32 denoisers", found.unet_bytes))
    if found.saved_by_dedup:
        others.append(("masks, equal ones each kept", found.undivided_bytes))
    others.sort(key=lambda form: form[1])
    return [("masks in this registry", found.used_bytes), *others]


def saved(kept: int, otherwise: int) -> tuple[str, str]:
    """(share that is saved, how many times smaller); empty where there is nothing to compare."""
    if not otherwise or otherwise == kept:
        return "", ""
    if not kept:
        return share(1.0), ""
    times = otherwise / kept
    return share(1 - kept / otherwise), f"{times:,.0f}" if times >= 100 else f"{times:.3g}"


def density_names() -> list[str]:
    """The classes of the density histogram as people read them."""
    from cones_registry.registry.statistics import DENSITY_BOUNDS

    ends = [share(bound) for bound in DENSITY_BOUNDS]
    return [
        f"up to {ends[0]}",
        *(f"{low.removesuffix(' %')} to {high}" for low, high in itertools.pairwise(ends)),
        f"above {ends[-1]}",
    ]
