"""What the service makes of many users, against one at a time and against a LoRA switch a request.

`tools/bench serving` starts `cones serve` with the demo base on this machine and asks it for small
pictures, each way in turn, several times:

* different: 64 clients at once, each with a concept of its own;
* same: the same 64 clients, all with one concept;
* alone: one client, one request after the other, concepts changing;
* lora: the way of today, without a service: a stock diffusers pipeline that loads a LoRA for each
  request, draws, and unloads it.

Then 10,000 requests of one step, and what the service's process weighs meanwhile. Every picture's
recipe is compared with its request. `--write` keeps the table in tools/results/serving.md and
serving.json; a missed target ends with exit code 1 unless `--no-assert` is given.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import generation_models as models
import httpx
import measured
from diffusers.utils import logging as diffusers_logging
from generation_phases import LORA_RANK, keep_lora

from cones_registry.generation import read_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cones_registry import BaseModel

MEBIBYTE = 1 << 20
MOST_GROWTH = 32  # MiB that the process may grow by from its 2,000th request on
WAYS = {
    "different": "64 clients at once, 64 concepts",
    "same": "64 clients at once, one concept",
    "alone": "one request at a time, 64 concepts",
    "lora": f"stock diffusers, a LoRA of rank {LORA_RANK} loaded for each request",
}


@contextmanager
def service(folder: Path) -> Iterator[tuple[str, int]]:
    """`cones serve` on a free port: its address and its process id."""
    command = [sys.executable, "-m", "cones_registry.cli", "-r", str(folder), "serve"]
    command += ["--base", "demo", "--port", "0", "--device", "cpu", "--max-waiting", "1000"]
    own = {"CONES_CACHE": str(models.cache_of(folder)), "CONES_SERVE_TOKEN": ""}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | own)
    assert process.stderr is not None
    try:
        found = next(filter(None, (re.match(r"(http://\S+) ", line) for line in process.stderr)))
        # A pipe that nobody empties would stop the service.
        threading.Thread(target=sys.stderr.writelines, args=[process.stderr], daemon=True).start()
        yield found[1], process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


class Clients:
    """Asks the service, and checks what it answers.

    Args:
        url: of the service.
        refs: concepts.
        steps: of each picture.
    """

    def __init__(self, url: str, refs: list[str], steps: int) -> None:
        self._url = url
        self._refs = refs
        self._steps = steps
        self._seeds = itertools.count()

    def run(self, clients: int, requests: int, concepts: int) -> tuple[float, list[float]]:
        """Seconds of all, and of each, of ``requests`` that ``clients`` make among them."""
        return asyncio.run(self._run(clients, requests, concepts))

    async def _run(self, clients: int, requests: int, concepts: int) -> tuple[float, list[float]]:
        numbers = iter(range(requests))
        limits = httpx.Limits(max_connections=clients)
        seconds: list[float] = []

        async def client(http: httpx.AsyncClient) -> None:
            for number in numbers:
                began = time.perf_counter()
                await self._ask(http, self._refs[number % concepts])
                seconds.append(time.perf_counter() - began)

        async with httpx.AsyncClient(
            base_url=self._url, timeout=600, limits=limits, trust_env=False
        ) as http:
            began = time.perf_counter()
            await asyncio.gather(*(client(http) for _ in range(clients)))
            return time.perf_counter() - began, seconds

    async def _ask(self, http: httpx.AsyncClient, ref: str) -> None:
        seed = next(self._seeds)
        body = {
            "prompt": f"a photo of <{ref}>",
            "seed": seed,
            "steps": self._steps,
            "user": f"user {seed % 64}",
        }
        answer = await http.post("/v1/images/generations", json=body)
        answer.raise_for_status()
        recipe = read_recipe(base64.b64decode(answer.json()["data"][0]["b64_json"]))
        if (recipe["seed"], recipe["prompt"]) != (seed, body["prompt"]):
            raise RuntimeError(f"request {seed} was answered with {recipe}")
        if [each["ref"] for each in recipe["concepts"]] != [ref]:
            raise RuntimeError(f"request {seed} for {ref} was drawn with {recipe['concepts']}")


def switching(base: BaseModel, requests: int, steps: int) -> tuple[float, list[float]]:
    """The same pictures as a stock pipeline draws them, a LoRA loaded from disk for each."""
    import torch

    pipeline = base.pipeline
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        keep_lora(base, folder)
        for number in range(requests):
            began = time.perf_counter()
            pipeline.load_lora_weights(folder, adapter_name=f"user{number}")
            pipeline(
                "a photo of tok1 dog",
                num_inference_steps=steps,
                guidance_scale=base.defaults.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(number),
            )
            pipeline.unload_lora_weights()
            seconds.append(time.perf_counter() - began)
    return sum(seconds), seconds


def weight(process: int) -> float:
    """Resident memory of a process, MiB."""
    text = Path(f"/proc/{process}/status").read_text("ascii")
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024 / MEBIBYTE


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every way, in turns; then the long run."""
    diffusers_logging.set_verbosity_error()
    base = models.load("demo", 0)
    found: dict[str, Any] = {way: {"rates": [], "seconds": []} for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "registry"
        refs = models.random_registry(folder, base, 64, 0.02)
        with service(folder) as (url, process):
            clients = Clients(url, refs, arguments.steps)
            few = max(8, arguments.requests // 4)
            ways = {
                "different": lambda: clients.run(64, arguments.requests, 64),
                "same": lambda: clients.run(64, arguments.requests, 1),
                "alone": lambda: clients.run(1, few, 64),
                "lora": lambda: switching(base, few, arguments.steps),
            }
            for turn in range(-1, arguments.repeats):
                for way in ways if turn % 2 else reversed(ways):
                    whole, each = ways[way]()
                    if turn >= 0:  # before the first turn all of it is done once
                        found[way]["rates"].append(len(each) / whole)
                        found[way]["seconds"] += each
                        sys.stderr.write(f"{way}: {len(each) / whole:.2f} a second\n")
            tiny = Clients(url, refs, 1)
            found["weights"] = []
            for _ in range(10):
                tiny.run(16, arguments.long // 10, 64)
                found["weights"].append(weight(process))
                sys.stderr.write(f"{found['weights'][-1]:.0f} MiB\n")
    return found


def verdicts(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, figure, "met", "missed" or nothing) of every claim; ratios are medians of turns."""

    def ratio(way: str, other: str) -> float:
        pairs = zip(found[way]["rates"], found[other]["rates"], strict=True)
        return statistics.median(one / two for one, two in pairs)

    def said(met: bool) -> str:
        return "met" if met else "missed"

    mixed = ratio("different", "same")
    growth = found["weights"][-1] - found["weights"][1]
    beside = {
        "64 clients at once against one request at a time": ("different", "alone"),
        "64 clients at once against a LoRA switch a request": ("different", "lora"),
        "one request at a time against a LoRA switch a request": ("alone", "lora"),
    }
    return [
        ("64 concepts against one, throughput: at least 0.9", f"{mixed:.3f}", said(mixed >= 0.9)),
        *((what, f"{ratio(*ways):.2f}", "") for what, ways in beside.items()),
        (
            f"memory from the second to the last tenth of the long run: at most {MOST_GROWTH} MiB",
            f"{growth:+.1f} MiB",
            said(growth <= MOST_GROWTH),
        ),
    ]


def page(record: dict[str, Any]) -> str:
    """The table with machine and versions."""
    found = record["found"]
    lines = [
        "# Serving",
        "",
        "`tools/bench serving --write`; what it does is said at the top of "
        "`tools/bench_serving.py`. Clients and service share the machine.",
        "",
        measured.said(record)
        + f" {record['steps']} steps a picture, {record['requests']} requests a turn, "
        f"{record['repeats']} turns.",
        "",
        "| way | pictures a second | p50, seconds | p99, seconds |",
        "|---|---:|---:|---:|",
    ]
    for way, what in WAYS.items():
        cuts = statistics.quantiles(found[way]["seconds"], n=100)
        rate = statistics.median(found[way]["rates"])
        lines.append(f"| {what} | {rate:.2f} | {cuts[49]:.2f} | {cuts[98]:.2f} |")
    lines += ["", "| | measured | |", "|---|---:|---|"]
    lines += [f"| {what} | {value} | {met} |" for what, value, met in verdicts(found)]
    weights = ", ".join(f"{each:.0f}" for each in found["weights"])
    lines += ["", f"Resident MiB after each tenth of {record['long']:,} requests: {weights}.", ""]
    return "\n".join(lines)


def main() -> int:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=96, help="of a turn of many clients")
    parser.add_argument("--steps", type=int, default=4, help="of each picture")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--long", type=int, default=10_000, help="requests of the long run")
    parser.add_argument("--write", action="store_true", help="keep tools/results/serving.*")
    parser.add_argument("--no-assert", action="store_true", help="report missed targets only")
    arguments = parser.parse_args()
    os.environ["CONES_ACTOR"] = "bench"
    found = measure(arguments)
    record = {
        **measured.conditions(models.load("demo", 0)),
        **{name: getattr(arguments, name) for name in ("requests", "steps", "repeats", "long")},
        "found": found,
    }
    table = page(record)
    sys.stdout.write(table)
    if arguments.write:
        measured.keep("serving", record, table)
    missed = any(met == "missed" for _, _, met in verdicts(found))
    return 1 if missed and not arguments.no_assert else 0


if __name__ == "__main__":
    sys.exit(main())
