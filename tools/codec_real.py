"""Real masks: what structure they have, which layout wins, and what they share."""

from __future__ import annotations

import codec_masks as masks
import codec_rivals as rivals
import numpy as np
from codec_measure import Report, check_read

from cones_registry import ConceptMask, encode
from cones_registry.codec import read_footer


def structure(report: Report, real: dict[str, ConceptMask]) -> None:
    """What structure real masks have, and which layout wins."""
    rows = []
    for name, mask in real.items():
        bound = masks.bound_bytes(mask)
        sizes = {each: len(encode(mask, layout=each)) for each in ("gap8", "class", "plain")}
        chosen = encode(mask)
        check_read(chosen, mask)
        spreads = masks.density_spreads(mask)
        layers = mask.counts / [layer.neuron_count for layer in mask.table.layers]
        coded, _ = rivals.range_coded(mask)
        rows.append(
            [
                name,
                f"{mask.density:.1%}",
                f"{layers.min():.1%} to {layers.max():.1%}",
                *(f"{spread:.1f}" for spread in spreads),
                f"{bound / 1e3:.1f} kB",
                *(f"{size / bound:.3f}" for size in sizes.values()),
                f"{coded / bound:.3f}",
                read_footer(chosen)["layout"],
            ]
        )
        report.figures.setdefault("real", {})[name] = {
            "density": mask.density,
            "row_spread": spreads[0],
            "col_spread": spreads[1],
            "bound": bound,
            **sizes,
            "range_coder": coded,
        }
    table = next(iter(real.values())).table
    by_class = sum(row[-1] == "class" for row in rows)
    report.table(
        "Real masks",
        f"Learnt on the demo's base model: {len(table)} layers, {table.neuron_count:,} neurons. "
        "Spread: variance of the density of a layer's rows (columns) over what a binomial of the "
        "layer's own density would show, so 1 is chance. The names say the scope, the density "
        "where one was asked for, and the method. "
        f"`class` is smaller for {by_class} of {len(rows)}: small masks do not pay for its tables.",
        [
            "mask",
            "density",
            "of its layers",
            "row spread",
            "column spread",
            "bound",
            "`gap8`",
            "`class`",
            "`plain`",
            "range coder",
            "chosen",
        ],
        rows,
    )


def general_mask(report: Report, real: dict[str, ConceptMask]) -> None:
    """Whether differences to the neurons that most concepts share are smaller than the masks."""
    families: dict[str, list[ConceptMask]] = {}
    for name, mask in real.items():
        families.setdefault(name.partition("-")[2] or name.partition(".")[2], []).append(mask)
    rows = []
    for family, members in families.items():
        if len(members) < 4:
            continue
        votes = {
            name: sum(mask.to_dense(name).astype(np.int64) for mask in members)
            for name in members[0].table.names
        }
        apart = sum(len(encode(mask)) for mask in members)
        for least in range(2, len(members) + 1):
            general = ConceptMask.from_dense({name: v >= least for name, v in votes.items()})
            differences = [(mask - general) | (general - mask) for mask in members]
            together = sum(len(encode(each)) for each in differences)
            rows.append(
                [
                    family,
                    str(len(members)),
                    f"in {least} or more",
                    f"{general.density:.2%}",
                    f"{apart / 1e3:.1f} kB",
                    f"{together / 1e3:.1f} kB",
                    f"{len(encode(general)) / 1e3:.1f} kB",
                    f"{(together + len(encode(general))) / apart:.3f}",
                    f"{together / apart:.3f}",
                ]
            )
    if rows:
        report.table(
            "Differences to a general mask",
            "The general mask of a base holds the neurons that so many of its concepts share. Each "
            "concept is then kept as the symmetric difference to it. Below 1 is smaller; the last "
            "column leaves the general mask out, as if it were shared by any number of concepts.",
            [
                "kind",
                "concepts",
                "general: neurons",
                "density",
                "apart",
                "differences",
                "general",
                "both / apart",
                "differences / apart",
            ],
            rows,
        )
