"""What serving concepts costs, against the stock pipeline, LoRA and shutting in place.

`tools/bench generation --model sd1` builds Stable Diffusion 1.x with random weights (their values
do not matter to time or memory), fills a registry with random concepts, and measures in one run,
rivals taking turns:

* step: a batch of different compositions against the stock pipeline's batch without any;
* switch: from four names to K/V, against loading a LoRA, and against shutting in place;
* many: requests over as many concepts, against the same requests over one;
* share: of the wall time from names to pictures, what is spent outside U-Net and autoencoder;
* ray: two workers against one process (with `--model demo` or a folder).

Claims are asserted (`--no-assert` only reports). `--write` keeps the table in tools/results.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from cones_registry import BaseModel, ConceptMask, Generator, Registry, Request, shut
from cones_registry.attention import MaskedPart, RequestParts, plan_rows, project_rows

RESULTS = Path(__file__).parent / "results"
PHASES = ("step", "switch", "many", "share", "ray")
Row = dict[str, Any]


def stable_diffusion_1(side: int) -> Any:
    """StableDiffusionPipeline of SD 1.x shapes with random weights; side: of the latents."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=side, cross_attention_dim=768, attention_head_dim=8)
    autoencoder = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=side * 8,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    return StableDiffusionPipeline(
        unet=unet,
        vae=autoencoder,
        text_encoder=text,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def word_tokenizer() -> Any:
    """A CLIP tokenizer of letters: rows and padding as in SD, no vocabulary file needed."""
    from transformers import CLIPTokenizer

    pieces = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces += [piece + "</w>" for piece in pieces] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


class Clock:
    """Seconds spent in the U-Net and in the autoencoder, call by call."""

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self.calls: dict[str, list[float]] = {"unet": [], "vae": []}

    @contextmanager
    def running(self) -> Iterator[Clock]:
        unet, autoencoder = self.base.denoiser, self.base.pipeline.vae
        originals = unet.forward, autoencoder.decode
        unet.forward = self._timed("unet", unet.forward)
        autoencoder.decode = self._timed("vae", autoencoder.decode)
        try:
            yield self
        finally:
            del unet.forward, autoencoder.decode
            if (unet.forward, autoencoder.decode) != originals:
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
        taken, self.calls = self.calls, {"unet": [], "vae": []}
        return taken


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call: Callable[[], Any]) -> float:
    synchronise()
    started = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - started


def median(call: Callable[[], Any], repeats: int) -> float:
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


def resident(field: str) -> int:
    """KiB of a field of /proc/self/status."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1])


def fill(registry: Registry, base: BaseModel, count: int, density: float) -> list[str]:
    """Push ``count`` random concepts of scope subject; their refs."""
    generator = np.random.default_rng(0)
    items = []
    for number in range(count):
        indices = {}
        for layer in base.layer_table.layers:
            members = generator.random(layer.rows * layer.cols, dtype=np.float32) < density
            indices[layer.name] = np.flatnonzero(members).astype(np.int32)
        options = {
            "base": base,
            "scope": "subject" if number % 2 else "prompt",
            "token": f"tok{number}",
            "class_noun": "dog",
        }
        items.append(
            (f"bench/c{number}", ConceptMask.from_indices(base.layer_table, indices), options)
        )
    return [concept.ref for concept in registry.push_many(items)]


def prompt_for(numbers: list[int]) -> str:
    return "a photo of " + " and ".join(f"tok{number} dog" for number in numbers)


class Bench:
    """One model, one registry, one table."""

    def __init__(
        self, base: BaseModel, registry: Registry, refs: list[str], steps: int, repeats: int
    ) -> None:
        self.base, self.registry, self.refs = base, registry, refs
        self.steps, self.repeats = steps, repeats
        self.generator = Generator(base)
        self.rows: list[Row] = []
        self.broken: list[str] = []

    def claim(self, what: str, value: float, limit: float, *, least: bool = False) -> None:
        held = value >= limit if least else value <= limit
        sign = "≥" if least else "≤"
        self.rows.append({"what": what, "value": value, "claim": f"{sign} {limit}", "held": held})
        if not held:
            self.broken.append(f"{what}: {value:.3f}, claimed {sign} {limit}")

    def note(self, what: str, value: float) -> None:
        self.rows.append({"what": what, "value": value, "claim": "", "held": None})

    def requests(self, count: int) -> list[Request]:
        """``count`` requests of one to four concepts each, all different."""
        made = []
        for number in range(count):
            chosen = [(number * 5 + k) % len(self.refs) for k in range(1 + number % 4)]
            composition = self.registry.resolve(*(self.refs[each] for each in chosen))
            made.append(Request(prompt_for(chosen), composition=composition, seed=number))
        return made

    def step(self) -> None:
        """A batch of 8 compositions against the stock batch of 8 with none, taking turns."""
        requests = self.requests(8)
        settings = {"steps": self.steps, "guidance_scale": 7.5}
        prompts = [request.prompt for request in requests]
        ours: list[float] = []
        stock: list[float] = []
        memory: dict[str, float] = {}
        with Clock(self.base).running() as clock:
            for _ in range(self.repeats + 1):
                with peak_memory(memory, "stock"):
                    self.base.pipeline(
                        prompts,
                        num_inference_steps=self.steps,
                        generator=[torch.Generator().manual_seed(r.seed) for r in requests],
                    )
                stock += clock.take()["unet"][1:]
                with peak_memory(memory, "served"):
                    self.generator.generate(requests, **settings)
                ours += clock.take()["unet"][1:]
        own, theirs = statistics.median(ours), statistics.median(stock)
        entries = project_rows(
            self.base.denoiser,
            torch.zeros(16, 77, self.base.layer_table.layers[0].cols).to(
                self.base.device, self.base.dtype
            ),
        )
        kept = entries.byte_count / 2**20
        self.note("stock: seconds per step, batch of 8", theirs)
        self.note("served: seconds per step, 8 compositions of 1–4", own)
        self.claim("time per step, served / stock", own / theirs, 1.0)
        self.note("K/V of the batch, MiB", kept)
        self.note("peak memory above idle: stock, MiB", memory["stock"])
        self.note("peak memory above idle: served, MiB", memory["served"])
        self.claim(
            "peak memory, (served − K/V) / stock", (memory["served"] - kept) / memory["stock"], 1.02
        )

    def switch(self) -> None:
        """From four names to K/V, against a LoRA and against shutting in place."""
        base, refs = self.base, self.refs[:4]
        width = base.layer_table.layers[0].cols
        text = torch.randn(2, 77, width).to(base.device, base.dtype)

        def kv() -> None:
            composition = self.registry.resolve(*refs)
            rows = torch.zeros(77, dtype=torch.bool)
            rows[4:8] = True
            parts = tuple(
                MaskedPart(part.mask, rows if part.scope == "subject" else None)
                for part in composition.parts
            )
            edits = plan_rows([RequestParts(), RequestParts(parts)], 77)
            with torch.no_grad():
                project_rows(base.denoiser, text, edits)

        mask = self.registry.pull(refs[0])

        def in_place() -> None:
            with shut(base.denoiser, mask):
                pass

        own = median(kv, self.repeats)
        self.note("switch: 4 names → pull, resolve, K/V, seconds", own)
        self.note("shut() one mask in place and restore, seconds", median(in_place, self.repeats))
        sample = torch.randn(2, 4, *(2 * (base.denoiser.config.sample_size,)))
        sample = sample.to(base.device, base.dtype)
        with torch.no_grad():
            one_step = median(
                lambda: base.denoiser(sample, 500, encoder_hidden_states=text), self.repeats
            )
        self.note("one U-Net step of one picture with guidance, seconds", one_step)
        lora = self._lora()
        self.note("LoRA rank 4: load_lora_weights + set_adapters, seconds", lora)
        self.claim("LoRA switch / concept switch", lora / own, 20.0, least=True)

    def _lora(self) -> float:
        """Median seconds of diffusers' own switch on this very model."""
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft import LoraConfig, get_peft_model_state_dict

        pipeline = self.base.pipeline
        config = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
        with tempfile.TemporaryDirectory() as folder:
            pipeline.unet.add_adapter(config, adapter_name="made")
            state = convert_state_dict_to_diffusers(
                get_peft_model_state_dict(pipeline.unet, adapter_name="made")
            )
            pipeline.save_lora_weights(folder, unet_lora_layers=state, safe_serialization=True)
            pipeline.unload_lora_weights()
            taken = []
            for number in range(self.repeats):

                def change(name: str = f"switch{number}") -> None:
                    pipeline.load_lora_weights(folder, adapter_name=name)
                    pipeline.set_adapters([name], [1.0])

                taken.append(seconds(change))
                pipeline.unload_lora_weights()
        return statistics.median(taken)

    def many(self, count: int) -> None:
        """Requests over many concepts against the same requests over one."""
        settings = {"steps": self.steps, "guidance_scale": 1.0, "batch_size": 4}

        def requests(choose: Callable[[int], int]) -> list[Request]:
            return [
                Request(
                    prompt_for([choose(number)]),
                    composition=self.registry.resolve(self.refs[choose(number)]),
                    seed=number,
                )
                for number in range(count)
            ]

        def over_many() -> None:
            self.generator.generate(requests(lambda number: number % len(self.refs)), **settings)

        def over_one() -> None:
            self.generator.generate(requests(lambda _: 0), **settings)

        over_one()
        memory: dict[str, float] = {}
        pairs = []
        for _ in range(self.repeats):
            with peak_memory(memory, "one"):
                one = seconds(over_one)
            with peak_memory(memory, "many"):
                pairs.append((one, seconds(over_many)))
        one = statistics.median(pair[0] for pair in pairs)
        many = statistics.median(pair[1] for pair in pairs)
        self.note(f"{count} requests over one concept, pictures a second", count / one)
        self.note(
            f"{count} requests over {len(self.refs)} concepts, pictures a second", count / many
        )
        self.claim("throughput, many concepts / one", one / many, 0.98, least=True)
        self.note("peak memory above idle: one concept, MiB", memory["one"])
        self.note("peak memory above idle: many concepts, MiB", memory["many"])

    def share(self) -> None:
        """What of the wall time from names to pictures is not U-Net or autoencoder."""
        shares = []
        with Clock(self.base).running() as clock:
            for _ in range(self.repeats + 1):
                clock.take()
                started = time.perf_counter()
                self.generator.generate(self.requests(8), steps=self.steps, guidance_scale=7.5)
                wall = time.perf_counter() - started
                inside = sum(sum(calls) for calls in clock.take().values())
                shares.append(1 - inside / wall)
        self.note(f"share outside U-Net and autoencoder, {self.steps} steps", min(shares[1:]))
        if self.steps >= 20:
            self.claim("share outside U-Net and autoencoder", min(shares[1:]), 0.03)

    def ray(self, source: str, pictures: int) -> None:
        """The same jobs on one process and on two Ray workers."""
        from cones_registry.batch import Compositions, Engine, LocalEngine, run_batch
        from cones_registry.batch.ray_engine import RayEngine

        jobs = json.dumps({"prompt": "a photo", "count": pictures, "steps": self.steps})
        compositions = Compositions(self.registry)

        def run(engine: Engine, folder: str) -> float:
            report = run_batch(
                jobs, folder, engine=engine, base=source, compositions=compositions,
                registry=self.registry.url, batch_size=4,
            )  # fmt: skip
            if not report.succeeded:
                raise RuntimeError(f"pictures failed: {report.failures[:3]}")
            return report.seconds

        with tempfile.TemporaryDirectory() as folder:
            local = run(LocalEngine(compositions), f"{folder}/local")
            cluster = run(RayEngine(workers=2, cpus=0.5), f"{folder}/ray")
        self.note(f"{pictures} pictures, one process, seconds", local)
        self.note(f"{pictures} pictures, two Ray workers from a cold start, seconds", cluster)
        self.note("Ray overhead a picture, seconds", (cluster - local) / pictures)


def table(bench: Bench, title: str) -> str:
    lines = [f"# {title}", "", "| | measured | claim | |", "|---|---:|---|---|"]
    for row in bench.rows:
        held = {True: "held", False: "**not held**", None: ""}[row["held"]]
        lines.append(f"| {row['what']} | {row['value']:.4g} | {row['claim']} | {held} |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    load = os.getloadavg()[0]
    return (
        f"{name}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, load {load:.1f}, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


@click.command()
@click.option("--model", default="sd1", show_default=True, help="sd1, demo, a folder or hub id.")
@click.option("--side", default=16, show_default=True, help="Of the latents, for sd1.")
@click.option("--steps", default=3, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--concepts", default=16, show_default=True, help="In the registry.")
@click.option("--density", default=0.01, show_default=True)
@click.option("--requests", default=16, show_default=True, help="Of the phase `many`.")
@click.option("--only", multiple=True, type=click.Choice(PHASES), help="Repeatable; default: all.")
@click.option("--assert/--no-assert", "check", default=True)
@click.option("--write", is_flag=True, help="Keep the table in tools/results.")
def main(
    model: str,
    side: int,
    steps: int,
    repeats: int,
    concepts: int,
    density: float,
    requests: int,
    only: tuple[str, ...],
    check: bool,
    write: bool,
) -> None:
    """Measure what serving concepts costs."""
    phases = only or tuple(phase for phase in PHASES if phase != "ray" or model != "sd1")
    if model == "sd1":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        pipeline = stable_diffusion_1(side).to(device)
        base = BaseModel(pipeline, source="sd1", fingerprint="sha256:" + "0" * 64)
    else:
        base = BaseModel.load(model)
    base.pipeline.set_progress_bar_config(disable=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        Registry.create(f"{folder}/registry", cache=f"{folder}/cache") as registry,
    ):
        refs = fill(registry, base, concepts, density)
        for ref in refs:
            registry.pull(ref)  # a warm registry: the masks are on this machine
        bench = Bench(base, registry, refs, steps, repeats)
        for phase in phases:
            click.echo(f"{phase} …", err=True)
            if phase == "many":
                bench.many(requests)
            elif phase == "ray":
                bench.ray(model, requests)
            else:
                getattr(bench, phase)()
    title = (
        f"Generation: {model}, latents {side}×{side}" if model == "sd1" else f"Generation: {model}"
    )
    text = table(bench, title) + f"\n{machine()}\n"
    click.echo(text)
    if write:
        RESULTS.mkdir(exist_ok=True)
        name = f"generation-{Path(model).name}"
        (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
        content = {"title": title, "machine": machine(), "rows": bench.rows}
        (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    if check and bench.broken:
        raise SystemExit("claims not held:\n  " + "\n  ".join(bench.broken))


if __name__ == "__main__":
    main()
