"""The phases of `bench_generation.py`: what each measures is said at the top of that file."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

import generation_models as models
import torch
from generation_engines import ray
from generation_measure import Clock, Rows, median, peak_memory, resident, seconds
from generation_models import Bench

from cones_registry import BaseModel, Generator, Request, shut
from cones_registry.attention import MaskedPart, RequestParts, plan_rows, project_text
from cones_registry.generation.parts import branches
from cones_registry.generation.view import PlannedModel

GUIDANCE = 7.5
LORA_RANK = 4
LORA_WEIGHTS = ["to_q", "to_k", "to_v", "to_out.0"]


def step(bench: Bench) -> Rows:
    """A batch of different compositions against the stock pipeline's batch of none."""
    with bench.open() as registry:
        requests = models.mixed_requests(registry, bench.refs, bench.batch)
    rows = Rows(bench.at_scale)
    kept = _time_of_step(bench, requests, rows)
    _memory_of_step(bench, requests, kept, rows)
    return rows


def _time_of_step(bench: Bench, requests: list[Request], rows: Rows) -> float:
    """MiB of the K and V that are served."""
    base = bench.base
    text, noise = bench.random_text(2 * bench.batch), bench.noise(2 * bench.batch)
    planned = [
        branches(
            request, base, rows=bench.text_rows, mask_unconditional=True, include_padding=False
        )
        for request in requests
    ]
    served = PlannedModel(base.denoiser, planned)
    pairs = []
    with torch.no_grad():
        first = seconds(lambda: served(noise, 500, encoder_hidden_states=text))
        for _ in range(bench.repeats):  # taking turns, call by call
            stock = seconds(lambda: base.denoiser(noise, 500, encoder_hidden_states=text))
            ours = seconds(lambda: served(noise, 500, encoder_hidden_states=text))
            pairs.append((ours, stock))
        rows_of_text = project_text(base.denoiser, text).values()
        kept = sum(each.numel() * each.element_size() for each in rows_of_text) / 2**20
    ours, stock = (statistics.median(column) for column in zip(*pairs, strict=True))
    what = f"batch of {bench.batch} with guidance"
    rows.note(f"stock: seconds a step, {what}, no concept", stock)
    rows.note(f"served: seconds a step, {bench.batch} compositions of 1–4 concepts", ours)
    rows.note("served: seconds of the first step, which computes K and V", first)
    rows.claim(
        "time a step, served / stock: median of pairs",
        statistics.median(one / two for one, two in pairs),
        1.0,
    )
    return kept


def _memory_of_step(bench: Bench, requests: list[Request], kept: float, rows: Rows) -> None:
    base, memory = bench.base, dict[str, float]()
    for _ in range(2):  # the first of each warms up
        with peak_memory(memory, "stock"):
            base.pipeline(
                [request.prompt for request in requests],
                num_inference_steps=1,
                guidance_scale=GUIDANCE,
                generator=[torch.Generator().manual_seed(request.seed) for request in requests],
            )
        with peak_memory(memory, "served"):
            Generator(base).generate(requests, steps=1, guidance_scale=GUIDANCE)
    rows.note("K/V of the batch, MiB", kept)
    rows.note("peak memory above the model's: stock, MiB", memory["stock"])
    rows.note("peak memory above the model's: served, MiB", memory["served"])
    ratio = (memory["served"] - kept) / memory["stock"]
    rows.claim("peak memory, (served − K/V) / stock", ratio, 1.02)


def switch(bench: Bench) -> Rows:
    """From four names to K/V, against loading LoRAs and against shutting in place."""
    base, rows, names = bench.base, Rows(bench.at_scale), bench.refs[:4]
    text, noise = bench.random_text(2), bench.noise(2)
    with bench.open() as registry:
        composition = registry.resolve(*names)

    def fresh() -> float:
        with bench.open() as registry:
            registry.get(names[0])  # the catalogue is there; no mask is in memory
            return seconds(lambda: registry.resolve(*names))

    fresh()
    cold = statistics.median(fresh() for _ in range(bench.repeats))
    with bench.open() as registry:
        warm = median(lambda: registry.resolve(*names), bench.repeats)
    own = torch.zeros(bench.text_rows, dtype=torch.bool)
    own[4:8] = True
    parts = tuple(
        MaskedPart(part.mask, own if part.scope == "subject" else None)
        for part in composition.parts
    )

    def key_values(*parts: MaskedPart) -> None:
        edits = plan_rows([RequestParts(), RequestParts(parts)], bench.text_rows)
        with torch.no_grad():
            project_text(base.denoiser, text, edits)

    def in_place() -> None:
        for part in composition.parts:
            with shut(base.denoiser, part.mask):
                pass

    def one_step() -> None:
        with torch.no_grad():
            base.denoiser(noise, 500, encoder_hidden_states=text)

    plain = median(key_values, bench.repeats)
    masked = median(lambda: key_values(*parts), bench.repeats)
    rows.note("resolve 4 names, masks on the local disk, seconds", cold)
    rows.note("resolve 4 names, masks in memory, seconds", warm)
    rows.note("K/V of one picture with guidance: plain, seconds", plain)
    rows.note("K/V of one picture with guidance: under the composition, seconds", masked)
    rows.note(
        "shut() the composition's masks in place and restore, seconds",
        median(in_place, bench.repeats),
    )
    took = median(one_step, bench.repeats)
    rows.note("one denoiser step of one picture with guidance, seconds", took)
    rows.note("switch (resolve from disk + K/V) in denoiser steps", (cold + masked) / took)
    one, four = lora_switch(base, 1, bench.repeats), lora_switch(base, 4, bench.repeats)
    rows.note(f"LoRA rank {LORA_RANK}, load_lora_weights + set_adapters: one, seconds", one)
    rows.note(f"LoRA rank {LORA_RANK}, load_lora_weights + set_adapters: four, seconds", four)
    why = (
        f"plain K/V, which the stock model computes at every step, is {plain / one:.2f} of one LoRA"
    )
    rows.claim(
        "one LoRA / 4 concepts, from disk to K/V", one / (cold + masked), 20, least=True, why=why
    )
    rows.note("four LoRAs / 4 concepts, from disk to K/V", four / (cold + masked))
    net = masked - plain  # what the switch adds to the work of a stock step
    rows.note("one LoRA / 4 concepts from disk, without the plain K/V", one / (cold + net))
    rows.note("four LoRAs / 4 concepts from disk, without the plain K/V", four / (cold + net))
    rows.note("one LoRA / 4 concepts from memory, without the plain K/V", one / (warm + net))
    rows.note("four LoRAs / 4 concepts from memory, without the plain K/V", four / (warm + net))
    return rows


def keep_lora(base: BaseModel, folder: str) -> None:
    """Save a LoRA of this model in `folder`; the model is left as it was."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    pipeline = base.pipeline
    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=LORA_WEIGHTS)
    pipeline.unet.add_adapter(config, adapter_name="made")
    state = convert_state_dict_to_diffusers(
        get_peft_model_state_dict(pipeline.unet, adapter_name="made")
    )
    pipeline.save_lora_weights(folder, unet_lora_layers=state, safe_serialization=True)
    pipeline.unload_lora_weights()


def lora_switch(base: BaseModel, count: int, repeats: int) -> float:
    """Median seconds of diffusers' own switch to `count` LoRAs, on this very model."""
    pipeline, taken = base.pipeline, []
    with tempfile.TemporaryDirectory() as folder:
        keep_lora(base, folder)
        for number in range(repeats + 1):
            names = [f"switch{number}x{each}" for each in range(count)]

            def change(names: list[str] = names) -> None:
                for name in names:
                    pipeline.load_lora_weights(folder, adapter_name=name)
                pipeline.set_adapters(names, [1.0] * len(names))

            taken.append(seconds(change))
            pipeline.unload_lora_weights()
    return statistics.median(taken[1:])


def many(bench: Bench) -> Rows:
    """Requests over as many concepts against the same requests over one, batch by batch."""
    rows = Rows(bench.at_scale)
    memory: dict[str, list[float]] = {"one": [], "many": []}
    times: dict[str, list[float]] = {"one": [], "many": []}
    settings = {"steps": bench.steps, "guidance_scale": 1.0}
    generator = Generator(bench.base)
    with bench.open() as registry:

        def draw(numbers: list[int]) -> None:
            requests = []
            for place, number in enumerate(numbers):
                composition = registry.resolve(bench.refs[number])
                prompt = models.prompt_for([number])
                requests.append(Request(prompt, composition=composition, seed=place))
            generator.generate(requests, **settings)

        draw([0] * bench.batch)
        last = bench.first + bench.requests
        for start in range(bench.first, last, bench.batch):
            numbers = list(range(start, min(start + bench.batch, last)))
            ways = {"one": [0] * len(numbers), "many": [each % len(bench.refs) for each in numbers]}
            order = ("one", "many") if (start // bench.batch) % 2 else ("many", "one")
            for way in order:
                times[way].append(seconds(partial(draw, ways[way])))
                memory[way].append(resident() / 2**10)
    one, several = sum(times["one"]), sum(times["many"])
    distinct = min(bench.requests, len(bench.refs))
    rows.note(
        f"{bench.requests} requests over one concept, pictures a second", bench.requests / one
    )
    rows.note(
        f"{bench.requests} requests over {distinct} concepts, pictures a second",
        bench.requests / several,
    )
    rows.claim("throughput, many concepts / one: sums", one / several, 0.98, least=True)
    rows.note(
        "the same, median of batches",
        statistics.median(a / b for a, b in zip(times["one"], times["many"], strict=True)),
    )
    half = len(memory["many"]) // 2
    rows.note("process memory after the first half of the batches, MiB", memory["many"][half - 1])
    rows.note("process memory after all, MiB", memory["many"][-1])
    return rows


def share(bench: Bench) -> Rows:
    """What of the wall time from names to pictures is not denoiser or autoencoder."""
    rows, shares = Rows(bench.at_scale), []
    generator = Generator(bench.base)
    with Clock(bench.base).running() as clock:
        for _ in range(bench.repeats):
            with bench.open() as registry:
                registry.get(bench.refs[0])
                clock.take()
                started = time.perf_counter()
                requests = models.mixed_requests(registry, bench.refs, bench.batch)
                resolved = time.perf_counter() - started
                generator.generate(requests, steps=bench.steps, guidance_scale=GUIDANCE)
                wall = time.perf_counter() - started
            inside = sum(sum(calls) for calls in clock.take().values())
            shares.append((1 - inside / wall, resolved, wall))
    outside, resolved, wall = sorted(shares)[len(shares) // 2]
    what = f"{bench.batch} names-to-pictures of {bench.steps} steps"
    rows.note(f"{what}: wall time, seconds", wall)
    rows.note("of it resolving, seconds", resolved)
    rows.note("of it text encoder, K/V, scheduler, PIL, seconds", outside * wall - resolved)
    rows.claim("share of wall time outside denoiser and autoencoder", outside, 0.03)
    return rows


PHASES: dict[str, Callable[[Bench], Rows]] = {
    "step": step,
    "switch": switch,
    "many": many,
    "share": share,
    "ray": ray,
}
