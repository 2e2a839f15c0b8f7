"""What a mask takes on disk and how fast it is read, against other ways to keep it.

`tools/bench codec [--masks FOLDER] [--steps N] [--write]`

Masks over the layer table of Stable Diffusion 1.x: A (uniform) and B (structured: scores are θ ∘
the mean of 50 rank-1 gradients, with standard log-normal scales of rows and columns), at densities
of 0.1 to 10 %. And real masks: those in FOLDER, or the demo's subjects, learnt here in N steps.

Whatever is written is read back and compared. Sizes are relative to log2 C(N, k) bits; times to
`flatnonzero(unpackbits(bitmap))` of the same mask in the same run, each the best of some, in
processor time. `--write` keeps the tables in tools/results/codec.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import codec_masks as masks
import codec_rivals as rivals
import numpy as np
import zstandard
from codec_measure import Report, check_read, measure_layout, measure_rival, reference_seconds
from codec_real import general_mask, structure

from cones_registry import ConceptMask, encode
from cones_registry.factors import PRECISIONS

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "numba", "pyarrow", "zstandard", "pyroaring", "safetensors", "constriction")
SIZE_TARGETS = {
    ("A", 0.001): 1.06,
    ("A", 0.01): 1.015,
    ("A", 0.05): 1.015,
    ("A", 0.1): 1.015,
    ("B", 0.01): 0.70,
    ("B", 0.1): 0.85,
}
TIME_TARGETS = {
    ("gap8", "A", 0.01): 0.03,
    ("gap8", "A", 0.1): 0.10,
    ("class", "B", 0.01): 0.10,
    ("class", "B", 0.1): 0.32,
}


def synthetic(report: Report) -> None:
    """Sizes, times, and what is saved, for A and B."""
    table = masks.sd1_table()
    scores = masks.structured_scores(table)
    cases = [(kind, density) for kind in "AB" for density in masks.DENSITIES]
    measured: dict[str, dict[tuple[str, float], dict[str, float]]] = {}
    smallest: dict[tuple[str, float], int] = {}
    for case in cases:
        kind, density = case
        mask = masks.uniform(table, density) if kind == "A" else masks.structured(scores, density)
        smallest[case] = len(encode(mask))
        bound = masks.bound_bytes(mask)
        measured.setdefault("**smallest**", {})[case] = {"size": smallest[case] / bound}
        for layout in ("gap8", "class", "plain"):
            measured.setdefault(f"`{layout}`", {})[case] = measure_layout(mask, layout)
        for rival in rivals.RIVALS:
            measured.setdefault(rival.name, {})[case] = measure_rival(mask, rival)
        size, seconds = rivals.range_coded(mask)
        measured.setdefault("range coder (`constriction`)", {})[case] = {
            "size": size / bound,
            "bitmap": seconds / reference_seconds(mask),
        }
    heads = [f"{kind} {density:.1%}".replace(".0%", " %") for kind, density in cases]
    report.table(
        "Size of the file over the bound",
        "The bound is log2 C(N, k) / 8 bytes: 27.4 kB, 194 kB, 687 kB and 1.12 MB. *smallest* is "
        "what `encode` writes. The range coder codes the blocks of `class`, each neuron with the "
        "density of its block (see `codec_rivals.py`); it is what an entropy coder could gain.",
        ["", *heads],
        [
            [
                name,
                *(
                    report.against(
                        f"size of {case[0]} at {case[1]:.1%}",
                        measured[name][case]["size"],
                        SIZE_TARGETS.get(case) if name == "**smallest**" else None,
                        3,
                    )
                    for case in cases
                ),
            ]
            for name in measured
        ],
    )
    layouts = ("gap8", "class", "plain")
    columns = (
        ("bitmap", "to bitmap"),
        ("bitmap_numpy", "to bitmap, without numba"),
        ("indices", "to int32"),
    )
    rows = []
    for name in measured:
        for key, says in columns:
            if key not in measured[name][cases[0]]:
                continue
            targets = TIME_TARGETS if key == "bitmap" else {}
            cells = [
                report.against(
                    f"{name} {says}, {case[0]} at {case[1]:.1%}",
                    measured[name][case][key],
                    targets.get((name.strip("`"), *case)),
                    3,
                )
                for case in cases
            ]
            rows.append([name, says, *cells])
    report.table(
        "Decoding over `flatnonzero(unpackbits(bitmap))`",
        "`decode(data, verify=False)`: bounds and page checksums are checked, the digest of the "
        "whole is not, as when a registry has compared that of the blob. Indices of `class` come "
        "by way of a bitmap. Both times are processor time, all threads together, the best of some "
        "calls.",
        ["", "", *heads],
        rows,
    )
    rows = [
        [name, *(f"{measured[name][case]['encode']:.2f}" for case in cases)]
        for name in (*(f"`{layout}`" for layout in layouts), *(r.name for r in rivals.RIVALS))
    ]
    report.table("Encoding, seconds", "Processor time.", ["", *heads], rows)
    others = {
        "raw int32": None,
        "dense float32 K/V": 4 * table.neuron_count,
        "LoRA rank 4, float32": masks.lora_bytes(table),
        "whole U-Net, float32": 4 * masks.SD1_UNET_PARAMETERS,
    }
    rows = []
    for name, size in others.items():
        cells = []
        for case in cases:
            other = size or 4 * round(case[1] * table.neuron_count)
            # Rounded down: nothing saves all of it.
            cells.append(f"{math.floor(1e5 * (1 - smallest[case] / other)) / 1e3:.3f} %")
        rows.append([name, f"{size / 1e6:,.1f} MB" if size else "4 bytes a neuron", *cells])
    kept = ["this file", "", *(f"{smallest[case] / 1e3:,.0f} kB" for case in cases)]
    report.table(
        "What is saved",
        "Sizes of the others from the layer table of Stable Diffusion 1.x (LoRA: query, key, value "
        "and output of self- and cross-attention); the U-Net's 859,520,964 parameters are "
        "published. Not everything is larger: a Textual Inversion vector takes 3 kB, a Cones 2 "
        "residual 5 kB, Perfusion 100 kB.",
        ["instead of", "which takes", *heads],
        [*rows, kept],
    )
    report.figures["synthetic"] = {
        name: {f"{kind} {density}": case for (kind, density), case in each.items()}
        for name, each in measured.items()
    }


def strengths(report: Report) -> None:
    """How much of what `class` saves hangs on the scales assumed for B."""
    table = masks.sd1_table()
    rows = []
    for row_sigma, col_sigma in ((0.3, 0.3), (0.5, 0.5), (1.0, 0.5), (0.5, 1.0), (1.0, 1.0)):
        scores = masks.structured_scores(table, row_sigma=row_sigma, col_sigma=col_sigma)
        cells = []
        for density in (0.01, 0.1):
            mask = masks.structured(scores, density)
            cells += [f"{spread:.1f}" for spread in masks.density_spreads(mask)]
            for layout in ("gap8", "class"):
                size = len(encode(mask, layout=layout)) / masks.bound_bytes(mask)
                cells.append(f"{size:.3f}")
        rows.append([f"{row_sigma}, {col_sigma}", *cells])
    heads = [
        f"{what}, {density}"
        for density in ("1 %", "10 %")
        for what in ("row spread", "column spread", "`gap8`", "`class`")
    ]
    report.table(
        "B with other scales",
        "Standard deviation of the logarithm of the scales of rows, and of columns; B above has 1 "
        "and 1. Spreads as for the real masks below; sizes over the bound.",
        ["σ of rows, of columns", *heads],
        rows,
    )


def factors(report: Report) -> None:
    """What factors take beside the indices, and what splitting their bytes saves."""
    plain = masks.uniform(masks.sd1_table(), 0.01)
    members = len(plain)
    rng = np.random.default_rng(0)
    kinds = {
        "uniform in [0, 1]": rng.random(members),
        "near 1, as joint tuning leaves them": 1 + 0.05 * rng.standard_normal(members),
    }
    rows = []
    for kind, values in kinds.items():
        for precision in PRECISIONS[1:]:
            if precision == "2bit" and values.max() > 1:
                continue
            mask = ConceptMask(plain.table, plain.words, values.astype(np.float32), precision)
            data = encode(mask, layout="gap8")
            check_read(data, mask)
            extra = len(data) - len(encode(plain, layout="gap8"))
            whole = np.ascontiguousarray(mask.factors).tobytes()
            together = len(zstandard.compress(whole, 1))
            rows.append(
                [
                    kind,
                    precision,
                    f"{extra / 1e3:.0f} kB",
                    f"{8 * extra / members:.2f}",
                    "" if precision == "2bit" else f"{together / 1e3:.0f} kB",
                    "" if precision == "2bit" else f"{len(whole) / 1e3:.0f} kB",
                ]
            )
            report.figures.setdefault("factors", {})[f"{kind}, {precision}"] = extra
    report.table(
        "Factors",
        f"What {members:,} factors add to the file (A, 1 %): one column a byte of the float. "
        "Beside it the same floats in one piece, with zstd 1 and without.",
        ["factors", "precision", "add", "bits each", "one piece, zstd", "one piece"],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--masks", type=Path, help="folder of mask files, instead of learning some")
    parser.add_argument("--steps", type=int, default=60, help="steps for learning them")
    parser.add_argument("--write", action="store_true", help="keep the tables in tools/results")
    arguments = parser.parse_args()
    report = Report()
    load = os.getloadavg()[0]
    synthetic(report)
    strengths(report)
    factors(report)
    real = dict(masks.real_masks(arguments.masks, arguments.steps))
    structure(report, real)
    general_mask(report, real)
    versions = {name: metadata.version(name) for name in PACKAGES}
    machine = f"{platform.platform()}, {os.cpu_count()} CPUs, load {load:.1f}"
    page = [
        "# Codec",
        "",
        f"`tools/bench codec{' --masks FOLDER' if arguments.masks else ''} --write`. "
        "Everything written was read back and compared.",
        "",
        f"{machine}; Python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
        "",
        "Targets missed: " + ("; ".join(report.missed) if report.missed else "none") + ".",
        "",
        *report.page,
    ]
    report.figures |= {"machine": machine, "versions": versions, "missed": report.missed}
    folder = RESULTS if arguments.write else Path(tempfile.mkdtemp())
    (folder / "codec.md").write_text("\n".join(page).rstrip() + "\n", encoding="utf-8")
    text = json.dumps(report.figures, indent=2) + "\n"
    (folder / "codec.json").write_text(text, encoding="utf-8")
    sys.stderr.write(f"\n{folder / 'codec.md'}\nmissed: {report.missed or 'nothing'}\n")


if __name__ == "__main__":
    main()
