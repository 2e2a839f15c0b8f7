"""`cones serve` in a process of its own, and a registry with concepts for it."""

import base64
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
import numpy as np

from cones_registry import BaseModel, ConceptMask, Registry
from cones_registry.generation import read_recipe

CONCEPTS = {"alice/dog": "dog", "bob/bear": "bear", "eve/star": "star"}
"""Concepts of ``make_registry`` and their nouns."""


@dataclass
class Running:
    """A service that runs.

    Attributes:
        url: of its root.
        process: the command.
        registry: folder of its registry.
        said: lines of its log until now.
    """

    url: str
    process: "subprocess.Popen[str]"
    registry: Path
    said: list[str]

    def stop(self) -> int:
        """End it as an operating system does; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def client(self, **more: Any) -> httpx.Client:
        """A client without a proxy of the machine's."""
        limits = httpx.Limits(max_connections=None)
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False, limits=limits, **more)


def start(registry: Path, base: str, *options: str, **environment: str) -> Running:
    """Start `cones serve` on a free port and wait until it takes requests."""
    command = [sys.executable, "-m", "cones_registry.cli", "-r", str(registry), "serve"]
    cache = str(registry.parent / f"cache-{len(list(registry.parent.glob('cache-*')))}")
    process = subprocess.Popen(
        [*command, "--base", base, "--port", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CONES_CACHE": cache, "CONES_SERVE_TOKEN": "", **environment},
    )
    said: list[str] = []
    begun: Queue[str] = Queue()

    def listen() -> None:  # a pipe that nobody empties would stop the service
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                said.append(line)
                if found := re.match(r"(http://\S+) ", line):
                    begun.put(found[1])
        begun.put("")

    threading.Thread(target=listen, daemon=True).start()
    url = begun.get()
    assert url, "".join(said)
    return Running(url, process, registry, said)


def make_registry(folder: Path, base: BaseModel, **notes: str) -> Path:
    """A registry with ``CONCEPTS``, the masks random. notes: of concepts, by noun."""
    opened = Registry.create(folder, cache=folder.parent / "cache")
    generator = np.random.default_rng(5)
    for ref, noun in CONCEPTS.items():
        chosen = {
            layer.name: np.flatnonzero(generator.random(layer.neuron_count) < 0.2).astype(np.int32)
            for layer in base.layer_table.layers
        }
        mask = ConceptMask.from_indices(base.layer_table, chosen)
        words: Any = {"token": "sks", "class_noun": noun, "note": notes.get(noun, "")}
        opened.push(ref, mask, base=base, scope="subject", **words)
    opened.close()
    return folder


def recipe_of(content: str) -> dict[str, Any]:
    """The recipe in a picture that came as base64."""
    return read_recipe(base64.b64decode(content))
