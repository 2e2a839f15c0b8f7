"""The demo, one run, kept: `python tools/measure_demo.py --write`.

Runs `cones demo` in a process of its own and keeps what it prints, its report and its contact
sheet as tools/results/demo.{md,json} and contact-sheet.png (the picture of the README).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import torch
from measured import RESULTS, conditions, keep, said

from cones_registry import BaseModel


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="An empty folder.")
@click.option("--write", is_flag=True)
def main(work: Path, write: bool) -> None:
    """Run it and print what it printed."""
    torch.set_num_threads(1)
    before = conditions(BaseModel.load("demo"))
    began = time.monotonic()
    command = [sys.executable, "-m", "cones_registry.cli", "demo", "--out", str(work)]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    click.echo(ended.stdout)
    if not write:
        return
    report = json.loads((work / "report.json").read_text("utf-8"))
    text = (
        "# The demo, one run\n\n"
        f"`python tools/measure_demo.py --write`, which runs `cones demo` as `tools/demo` does: "
        f"{minutes} minutes {seconds} seconds. Shares of pictures that the judge finds right in "
        "shape, both colours, texture and place, subjects alone and both of a pair; gates of 300 "
        "steps in both scopes. Pictures: contact-sheet.png.\n\n"
        f"{said(before)}\n\n```\n{ended.stdout.strip()}\n```\n"
    )
    keep("demo", {**before, "seconds": 60 * minutes + seconds, **report}, text)
    shutil.copy(work / "contact-sheet.png", RESULTS / "contact-sheet.png")


if __name__ == "__main__":
    main()
