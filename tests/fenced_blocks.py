"""Fenced blocks of the project's pages, and how a test runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, what it needs, its text and the line it starts at."""

    language: str
    needs: str
    text: str
    line: int


def blocks(text: str) -> list[Block]:
    return [
        Block(match[1], match[2].strip(), match[3], text[: match.start()].count("\n") + 1)
        for match in BLOCK.finditer(text)
    ]


def run_block(
    block: Block, folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a block in a folder, with this interpreter's commands on the PATH."""
    scripts = Path(sys.executable).parent
    command = {
        "bash": ["bash", "-euo", "pipefail", "-c", block.text],
        "python": [sys.executable, "-W", "error", "-c", block.text],
    }[block.language]
    return subprocess.run(
        command,
        cwd=folder,
        env={**environment, "PATH": f"{scripts}{os.pathsep}{environment['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
