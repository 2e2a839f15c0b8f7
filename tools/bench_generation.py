"""What serving concepts costs, against the stock pipeline, LoRA and shutting in place.

`tools/bench generation --model sd1` builds Stable Diffusion 1.x with random weights (their values
do not matter to time or memory) on latents of `--side`, fills a registry with random concepts, and
measures, rivals taking turns:

* step: a batch of different compositions against the stock pipeline's batch without any;
* switch: from four names to K/V, against loading LoRAs, and against shutting in place;
* many: requests over as many concepts, against the same requests over one;
* share: of the wall time from names to pictures, what is spent outside U-Net and autoencoder;
* ray: one process against one and two Ray workers (not with sd1, which is not in a folder).

Each phase may run by itself (`--only`); `--write` puts its rows into tools/results/generation.json
in place of the last and makes the page generation.md anew. `--registry FOLDER` keeps the registry
of random concepts for the next phase. The targets are for Stable Diffusion's shapes; those missed
there are listed, and end with exit code 1 unless `--no-assert` is given.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import click
import generation_models as models
from diffusers.utils import logging as diffusers_logging
from generation_measure import keep
from generation_phases import PHASES

SCALE = 10_000_000  # neurons; Stable Diffusion 1.x has 19 million


@click.command()
@click.option("--model", default="sd1", show_default=True, help="sd1, demo, a folder or hub id.")
@click.option("--side", default=16, show_default=True, help="Of the latents, for sd1.")
@click.option("--batch", default=8, show_default=True, help="Pictures drawn together.")
@click.option("--steps", default=20, show_default=True)
@click.option("--requests", default=100, show_default=True, help="Of the phases `many` and `ray`.")
@click.option("--first", default=0, show_default=True, help="Concept that `many` begins with.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--concepts", default=100, show_default=True, help="In the registry.")
@click.option("--density", default=0.01, show_default=True)
@click.option("--registry", type=click.Path(path_type=Path), help="Folder; made if it is missing.")
@click.option("--only", multiple=True, type=click.Choice(list(PHASES)), help="Repeatable.")
@click.option("--assert/--no-assert", "check", default=True)
@click.option("--write", is_flag=True, help="Keep the rows in tools/results.")
def main(
    model: str,
    side: int,
    batch: int,
    steps: int,
    requests: int,
    first: int,
    repeats: int,
    concepts: int,
    density: float,
    registry: Path | None,
    only: tuple[str, ...],
    check: bool,
    write: bool,
) -> None:
    """Measure what serving concepts costs."""
    diffusers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", "Already found a `peft_config`")
    base = models.load(model, side)
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        place = (registry or Path(folder) / "registry").absolute()
        refs = models.random_registry(place, base, concepts, density)
        at_scale = base.layer_table.neuron_count >= SCALE
        bench = models.Bench(base, place, refs, at_scale, batch, steps, requests, first, repeats)
        for phase in only or tuple(name for name in PHASES if name != "ray" or model != "sd1"):
            click.echo(f"{model}/{phase} …", err=True)
            rows = PHASES[phase](bench)
            for row in rows.rows:
                click.echo(f"{row['what']}: {row['value']:.4g} {row['target']} {row['note']}")
            missed += [row["what"] for row in rows.rows if row["note"].startswith("**missed")]
            if write:
                settings = {"batch": batch, "repeats": repeats, "density": density}
                settings |= {"latents": f"{side}×{side}"} if model == "sd1" else {}
                settings |= {"dtype": str(base.dtype).removeprefix("torch.")}
                settings |= {"steps": steps} if phase in ("many", "share", "ray") else {}
                name = f"{phase} from {first}" if phase == "many" and first else phase
                keep(Path(model).name, name, settings, rows)
    if check and missed:
        raise SystemExit("targets missed:\n  " + "\n  ".join(missed))


if __name__ == "__main__":
    main()
