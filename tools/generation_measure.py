"""Clocks, memory and the results file of `bench_generation.py`."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cones_registry import BaseModel

RESULTS = Path(__file__).parent / "results"
PHASES = ("step", "switch", "many", "share", "ray")
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "ray")


class Rows:
    """The figures of one phase, and which claims they did not hold.

    at_scale: the targets are for this model; else they are only written beside the figures.
    """

    def __init__(self, at_scale: bool) -> None:
        self.at_scale = at_scale
        self.rows: list[dict[str, Any]] = []

    def claim(
        self, what: str, value: float, limit: float, *, least: bool = False, why: str = ""
    ) -> None:
        """A figure with its target; why: the reason, told only where the target is missed."""
        held = value >= limit if least else value <= limit
        target = f"{'≥' if least else '≤'} {limit:g}"
        note = "held" if held else f"**missed**{': ' + why if why else ''}"
        if not held and not self.at_scale:
            note = "not held by a model this small, whose fixed costs are all there is"
        self.rows.append({"what": what, "value": value, "target": target, "note": note})

    def note(self, what: str, value: float, note: str = "") -> None:
        """A figure without a target."""
        self.rows.append({"what": what, "value": value, "target": "", "note": note})


class Clock:
    """Seconds spent in the denoiser and in the autoencoder, call by call."""

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self.calls: dict[str, list[float]] = {"denoiser": [], "autoencoder": []}

    @contextmanager
    def running(self) -> Iterator[Clock]:
        """Time every call until the block ends."""
        denoiser, autoencoder = self.base.denoiser, self.base.pipeline.vae
        originals = denoiser.forward, autoencoder.decode
        denoiser.forward = self._timed("denoiser", denoiser.forward)
        autoencoder.decode = self._timed("autoencoder", autoencoder.decode)
        try:
            yield self
        finally:
            del denoiser.forward, autoencoder.decode
            if (denoiser.forward, autoencoder.decode) != originals:
                raise RuntimeError("the model was left changed")

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            synchronise()
            started = time.perf_counter()
            result = call(*args, **kwargs)
            synchronise()
            self.calls[name].append(time.perf_counter() - started)
            return result

        return timed

    def take(self) -> dict[str, list[float]]:
        """The calls since the last time this was asked."""
        taken, self.calls = self.calls, {"denoiser": [], "autoencoder": []}
        return taken


def synchronise() -> None:
    """Wait for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    synchronise()
    started = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - started


def median(call: Callable[[], Any], repeats: int) -> float:
    """Median seconds of `repeats` calls after one that does not count."""
    call()
    return statistics.median(seconds(call) for _ in range(repeats))


@contextmanager
def peak_memory(found: dict[str, float], name: str) -> Iterator[None]:
    """MiB above what was in use before: of the GPU, else of this process (Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield
        found[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
        return
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps would hide what is used anew
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    yield
    found[name] = (resident("VmHWM") - before) / 2**10


def resident(field: str = "VmRSS") -> int:
    """KiB of a field of /proc/self/status."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1])


def machine() -> str:
    """What all this was measured on."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    versions = ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
    return (
        f"{name}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads of torch, "
        f"Python {platform.python_version()}, {versions}"
    )


def keep(model: str, phase: str, settings: dict[str, Any], rows: Rows) -> None:
    """Put one phase into tools/results/generation.json in place of its last run; print the page."""
    file = RESULTS / "generation.json"
    content: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    content[f"{model}/{phase}"] = {
        "machine": machine(),
        "gpu": torch.cuda.is_available(),
        "load": os.getloadavg()[0],
        "settings": settings,
        "rows": rows.rows,
    }
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (RESULTS / "generation.md").write_text(page(content), "utf-8")


def page(content: dict[str, Any]) -> str:
    """The Markdown page of all phases that were kept."""
    lines = [
        "# Generation",
        "",
        "`tools/bench generation --model MODEL --only PHASE --write`, a phase at a time; what the "
        "phases do is said at the top of `tools/bench_generation.py`. `sd1` has Stable Diffusion "
        "1.x shapes and random weights. Ratios are of one run, rivals taking turns; times are this "
        "machine's, which other work shared.",
        "",
    ]
    for key, part in sorted(content.items()):
        settings = ", ".join(f"{name} {value}" for name, value in part["settings"].items())
        lines += [f"## {key}", "", f"{settings}; load {part['load']:.1f}.", ""]
        lines += ["| | measured | target | |", "|---|---:|---|---|"]
        lines += [
            f"| {row['what']} | {row['value']:.4g} | {row['target']} | {row['note']} |"
            for row in part["rows"]
        ]
        lines.append("")
    measured = {key.partition("/")[2].split()[0] for key in content}
    missing = [phase for phase in PHASES if phase not in measured]
    if not any(part.get("gpu") for part in content.values()):
        missing.append("any phase on a GPU (there was none)")
    if missing:
        lines += [f"Not measured: {', '.join(missing)}.", ""]
    machines = dict.fromkeys(part["machine"] for part in content.values())
    return "\n".join([*lines, *machines]) + "\n"
