"""How the measuring tools keep what they found: a page for people and its numbers as JSON."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from cones_registry import BaseModel

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """This machine, its threads and its load."""
    threads = torch.get_num_threads()
    return (
        f"{platform.platform()}, {os.cpu_count()} CPUs, "
        f"{threads} thread{'s' if threads != 1 else ''}, load {os.getloadavg()[0]:.1f}"
    )


def conditions(base: BaseModel) -> dict[str, str]:
    """What a figure was measured with: base model, machine with its load, torch."""
    return {
        "fingerprint": base.fingerprint,
        "machine": machine(),
        "torch": torch.__version__,
    }


def said(record: dict[str, Any]) -> str:
    """The same as a sentence of the page."""
    return f"Base {record['fingerprint']}; {record['machine']}; torch {record['torch']}."


def keep(name: str, record: dict[str, Any], page: str) -> None:
    """Write tools/results/``name``.json and .md."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(page, encoding="utf-8")
