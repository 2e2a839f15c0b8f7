"""Train the plain base model on the drawn world, as Stable Diffusion was trained.

    python tools/train_base.py text --steps 800      # captions and pictures, contrastively
    python tools/train_base.py unet --minutes 120    # goes on from its last checkpoint
    python tools/train_base.py decoder --minutes 30  # the autoencoder's; its encoder is exact
    python tools/train_base.py keep                  # small weights into tools/assets/plain-base
    python tools/train_base.py export FOLDER         # a StableDiffusionPipeline folder

First the text encoder learns from pairs of captions and pictures, as CLIP did; then the U-Net
learns to take noise off the latents of captioned pictures, and the text encoder goes on learning
along with it at a small rate. Captions are what people write (``scenes.random_telling``). Nothing
in training knows of concepts, placeholders or masks.

Everything is kept in ``--work`` (``build/plain-base``), with the optimizer's state, every three
minutes; where that folder is empty, training goes on from the weights in
``tools/assets/plain-base``. ``recipe.json`` in the folder holds what a run may change while it
goes on (:class:`Recipe`); the curve and each change of the recipe stand in ``curve.jsonl``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import plain_base as parts
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from plain_base_text import train_text
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from cones_registry.demo.drawn_world.pictures import render
from cones_registry.demo.drawn_world.scenes import (
    Scene,
    caption,
    random_scene,
    random_telling,
)

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build" / "plain-base"
KEPT = Path(__file__).parent / "assets" / "plain-base"
SAVE_EVERY = 180  # seconds


# U-Net ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What a run may change while it goes on, by editing ``recipe.json``.

    Attributes:
        rate: learning rate of AdamW.
        text: learning rate of the text encoder, as a share of ``rate``; 0 leaves it as it is.
        shares: of scenes with one, two, three and four things.
        placing: share of pictures at the last timestep, where nothing is seen and scene and
            places are decided; half of them with less noise than there will be, since it only
            distracts there.
        deciding: share of timesteps drawn where the signal-to-noise ratio is .01 to .7, and
            what a thing is gets decided; the rest is drawn below, where it is refined.
        empty: share of captions left empty, for guidance.
        average: most of the past that the averaged weights keep at each step.
    """

    rate: float = 1e-3
    text: float = 0.1
    shares: tuple[float, float, float, float] = (0.85, 0.15, 0.0, 0.0)
    placing: float = 0.2
    deciding: float = 0.55
    empty: float = 0.07
    average: float = 0.99

    @classmethod
    def read(cls, work: Path) -> Recipe:
        """The folder's recipe; the first time this class's own values are written there."""
        file = work / "recipe.json"
        if not file.exists():
            file.write_text(json.dumps(asdict(cls()), indent=1) + "\n", encoding="utf-8")
        values = json.loads(file.read_text(encoding="utf-8"))
        return cls(**(values | {"shares": tuple(values["shares"])}))


class Bank:
    """Scenes and their latents, renewed while training goes on."""

    def __init__(self, latents: parts.Latents, generator: np.random.Generator, room: int) -> None:
        self.latents, self.generator = latents, generator
        self.scenes: list[Scene] = []
        self.codes = torch.empty(room, parts.CHANNELS, 8, 8)
        self.next = 0

    def renew(self, shares: Sequence[float], count: int) -> None:
        """Add ``count`` scenes, in the place of the oldest once there is no more room."""
        numbers = self.generator.choice([1, 2, 3, 4], count, p=shares)
        scenes = [random_scene(self.generator, int(number)) for number in numbers]
        pictures = parts.to_tensor([render(scene, self.generator) for scene in scenes])
        for scene, code in zip(scenes, self.latents.encode(pictures), strict=True):
            if len(self.scenes) < len(self.codes):
                self.scenes.append(scene)
            else:
                self.scenes[self.next] = scene
            self.codes[self.next] = code
            self.next = (self.next + 1) % len(self.codes)

    def draw(self, count: int) -> tuple[Tensor, list[Scene]]:
        """``float32 [count, CHANNELS, 8, 8]`` and what they show."""
        chosen = self.generator.integers(len(self.scenes), size=count)
        return self.codes[torch.from_numpy(chosen)], [self.scenes[at] for at in chosen]


def noised(code: Tensor, alphas: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Latents with noise on them, and each one's timestep, ``int64 [n]``."""
    count = len(code)
    kind = torch.rand(count)
    placing = kind < recipe.placing
    deciding = (kind >= recipe.placing) & (kind < recipe.placing + recipe.deciding)
    steps = torch.randint(0, 550, (count,))
    steps = torch.where(deciding, torch.randint(550, 950, (count,)), steps)
    steps[placing] = 999
    strength = torch.ones(count)
    less = placing & (torch.rand(count) < 0.5)
    strength[less] = torch.rand(int(less.sum()))
    alpha = alphas[steps][:, None, None, None]
    noise = torch.randn_like(code) * strength[:, None, None, None]
    return alpha.sqrt() * code + (1 - alpha).sqrt() * noise, steps


@dataclass
class Training:
    """The U-Net as it is being trained, and what is needed to go on.

    Attributes:
        average: running mean of the weights, in the order of ``weights``.
        steps: U-Net steps so far, over all sessions.
        seconds: they took, over all sessions.
    """

    text: CLIPTextModel
    unet: UNet2DConditionModel
    latents: parts.Latents
    average: list[Tensor]
    optimizer: torch.optim.Optimizer
    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def start(cls, work: Path) -> Training:
        """From the checkpoint in ``work``, or the kept weights, or the text encoder alone."""
        tokenizer = parts.build_tokenizer()
        text, unet = parts.build_text_encoder(tokenizer), parts.build_unet()
        checkpoint = work / "unet.pt"
        kept = KEPT / "weights.safetensors"
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "text.safetensors").exists() and kept.exists():
            unpack(kept, work)
        text.load_state_dict(load_file(work / "text.safetensors"))
        groups = [{"params": list(unet.parameters())}, {"params": list(text.parameters())}]
        optimizer = torch.optim.AdamW(
            groups, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
        )
        training = cls(text, unet, parts.fit_latents(work), [], optimizer)
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)
            unet.load_state_dict(state["unet"])
            text.load_state_dict(state["text"])
            optimizer.load_state_dict(state["optimizer"])
            training.average = state["average"]
            training.steps, training.seconds = state["steps"], state["seconds"]
        elif (work / "unet.safetensors").exists():
            unet.load_state_dict(load_file(work / "unet.safetensors"))
            record = json.loads((work / "training.json").read_text(encoding="utf-8"))
            training.steps, training.seconds = record["steps"], record["seconds"]
        if not training.average:
            training.average = [weight.detach().clone() for weight in training.weights]
        return training

    @property
    def weights(self) -> list[Tensor]:
        """All that is trained: the U-Net's parameters, then the text encoder's."""
        return [*self.unet.parameters(), *self.text.parameters()]

    def take_averages(self) -> None:
        """Put the averaged weights into both models: what is looked at, kept and exported."""
        with torch.no_grad():
            for weight, average in zip(self.weights, self.average, strict=True):
                weight.copy_(average)
        self.unet.eval().requires_grad_(False)
        self.text.eval().requires_grad_(False)

    def save(self, work: Path) -> None:
        """Write ``unet.pt`` whole or not at all."""
        state = {
            "unet": self.unet.state_dict(),
            "text": self.text.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "steps": self.steps,
            "seconds": self.seconds,
        }
        torch.save(state, work / "unet.new")
        (work / "unet.new").replace(work / "unet.pt")


def train_unet(work: Path, minutes: float, *, batch: int = 32, compiled: bool = True) -> None:
    """Train the U-Net on plain captions for so long, saving as it goes."""
    training = Training.start(work)
    torch.manual_seed(training.steps)
    generator = np.random.default_rng(training.steps)
    tokens = parts.CaptionTokens(parts.build_tokenizer())
    alphas = parts.build_scheduler().alphas_cumprod
    unet, optimizer = training.unet, training.optimizer
    weights = training.weights
    denoise = torch.compile(unet) if compiled else unet
    recipe = Recipe.read(work)
    parts.note(work, {"stage": "unet", "step": training.steps, "recipe": asdict(recipe)})
    bank = Bank(training.latents, generator, 12_000)
    bank.renew(recipe.shares, 3_000)
    began = saved = time.time()
    before, first, seen = training.seconds, training.steps, []
    while time.time() - began < 60 * minutes:
        if training.steps % 10 == 0:
            bank.renew(recipe.shares, 60)
        rate = recipe.rate * min(1, (training.steps - first + 1) / 100)
        for group, share in zip(optimizer.param_groups, (1, recipe.text), strict=True):
            group["lr"] = rate * share
        code, scenes = bank.draw(batch)
        captions = [
            ""
            if generator.random() < recipe.empty
            else caption(scene, random_telling(generator, len(scene.things)))
            for scene in scenes
        ]
        noisy, steps = noised(code, alphas, recipe)
        with torch.set_grad_enabled(recipe.text > 0):
            rows = training.text(tokens(captions)).last_hidden_state
        error = (denoise(noisy, steps, rows).sample - code).square().mean((1, 2, 3))
        ratio = alphas[steps] / (1 - alphas[steps])
        loss = (error * (1 + ratio.clamp(max=4) / 4)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        training.steps += 1
        with torch.no_grad():
            kept = min(recipe.average, (1 + training.steps) / (10 + training.steps))
            torch._foreach_lerp_(training.average, weights, 1 - kept)
        training.seconds = before + time.time() - began
        found = error.detach()
        bands = (steps == 999, (steps >= 550) & (steps < 950), steps < 550)
        seen.append([float(found[band].mean()) if band.any() else np.nan for band in bands])
        if training.steps % 50 == 0:
            line = {"stage": "unet", "step": training.steps, "seconds": round(training.seconds)}
            mean = np.nanmean(seen[-50:], 0).round(4).tolist()
            parts.note(
                work, line | dict(zip(("placing", "deciding", "refining"), mean, strict=True))
            )
            if (changed_recipe := Recipe.read(work)) != recipe:
                recipe = changed_recipe
                parts.note(
                    work, {"stage": "unet", "step": training.steps, "recipe": asdict(recipe)}
                )
        if time.time() - saved > SAVE_EVERY:
            training.save(work)
            saved = time.time()
    training.save(work)


# Decoder ----------------------------------------------------------------------------------------


def train_decoder(work: Path, minutes: float, *, batch: int = 8, rate: float = 2e-3) -> None:
    """Train the autoencoder's decoder on latents with a little noise, as generated ones have."""
    torch.manual_seed(0)
    generator = np.random.default_rng()
    latents = parts.fit_latents(work)
    autoencoder = parts.build_autoencoder()
    decoder = autoencoder.decoder
    if (work / "decoder.safetensors").exists():
        decoder.load_state_dict(load_file(work / "decoder.safetensors"))
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)
    began = saved = time.time()
    step, seen = 0, []
    while (part := (time.time() - began) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            level = 0.5 * (1 + math.cos(math.pi * part))
            group["lr"] = rate * min(1, (step + 1) / 50) * (0.01 + 0.99 * level)
        scenes = [random_scene(generator, int(n)) for n in generator.integers(1, 5, batch)]
        pictures = parts.to_tensor([render(scene, generator) for scene in scenes])
        code = latents.encode(pictures)
        code = code + 0.2 * torch.rand(batch, 1, 1, 1) * torch.randn_like(code)
        off = autoencoder.decode(code).sample - pictures
        loss = off.abs().mean() + off.square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            seen.append(
                (float(off.abs().mean()), float((latents.decode(code) - pictures).abs().mean()))
            )
        if step % 100 == 0:
            line = {"stage": "decoder", "step": step, "seconds": round(time.time() - began)}
            mean = np.mean(seen[-100:], 0).round(4).tolist()
            parts.note(
                work, line | dict(zip(("error", "error of the linear one"), mean, strict=True))
            )
        if time.time() - saved > SAVE_EVERY:
            save_file(decoder.state_dict(), work / "decoder.safetensors")
            saved = time.time()
    save_file(decoder.state_dict(), work / "decoder.safetensors")


# Weights that are kept, and the folder ----------------------------------------------------------


def keep(work: Path, *, unet: bool = True) -> None:
    """Write the averaged weights as float16, the curve and the recipe into ``KEPT``.

    Without ``unet`` training goes on from the text encoder: what is wanted while the U-Net has
    seen too little to be worth its bytes.
    """
    training = Training.start(work)
    training.take_averages()
    tensors = {}
    if unet:
        tensors = {
            f"unet.{name}": value.half() for name, value in training.unet.state_dict().items()
        }
    tensors |= {f"text.{name}": value.half() for name, value in training.text.state_dict().items()}
    tensors |= {f"latents.{name}": value for name, value in training.latents.state().items()}
    if (work / "decoder.safetensors").exists():
        decoder = load_file(work / "decoder.safetensors")
        tensors |= {f"decoder.{name}": value.half() for name, value in decoder.items()}
    KEPT.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, KEPT / "weights.safetensors"
    )
    record = {
        "steps": training.steps if unet else 0,
        "seconds": round(training.seconds) if unet else 0,
        "recipe": asdict(Recipe.read(work)),
        "torch": torch.__version__,
    }
    (KEPT / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (KEPT / "curve.jsonl").write_bytes((work / "curve.jsonl").read_bytes())


def unpack(kept: Path, work: Path) -> None:
    """Put kept weights into an empty work folder, as if they had been trained there."""
    tensors = load_file(kept)
    for part in ("unet", "text", "latents", "decoder"):
        named = {
            name.removeprefix(f"{part}."): value.float() if value.is_floating_point() else value
            for name, value in tensors.items()
            if name.startswith(f"{part}.")
        }
        if named:
            save_file(named, work / f"{part}.safetensors")
    record = json.loads((kept.parent / "training.json").read_text(encoding="utf-8"))
    (work / "training.json").write_text(json.dumps(record), encoding="utf-8")
    (work / "recipe.json").write_text(json.dumps(record["recipe"], indent=1), encoding="utf-8")
    (work / "curve.jsonl").write_bytes((kept.parent / "curve.jsonl").read_bytes())


def export(work: Path, folder: Path) -> None:
    """Write a StableDiffusionPipeline folder with the averaged weights as float16."""
    training = Training.start(work)
    training.take_averages()
    autoencoder = parts.build_autoencoder()
    if (work / "decoder.safetensors").exists():
        autoencoder.decoder.load_state_dict(load_file(work / "decoder.safetensors"))
    parts.write_encoder(autoencoder, training.latents)
    StableDiffusionPipeline(
        vae=autoencoder.half(),
        text_encoder=training.text.half(),
        tokenizer=parts.build_tokenizer(),
        unet=training.unet.half(),
        scheduler=parts.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    defaults = json.dumps({"steps": 20, "guidance_scale": 1.5}) + "\n"
    (folder / "generation_defaults.json").write_text(defaults, encoding="utf-8")


@click.group()
@click.option(
    "--work", type=click.Path(path_type=Path), default=WORK, help="Checkpoints and curve."
)
@click.pass_context
def main(context: click.Context, work: Path) -> None:
    """Train the plain base model on the drawn world."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    context.obj = work


@main.command("text")
@click.option("--steps", default=800, show_default=True)
@click.pass_obj
def text_command(work: Path, steps: int) -> None:
    """Train the text encoder against pictures."""
    train_text(work, steps)


@main.command("unet")
@click.option("--minutes", default=120.0, show_default=True)
@click.option("--batch", default=24, show_default=True)
@click.option(
    "--compiled/--plain", default=True, help="Compiling takes minutes and pays in an hour."
)
@click.pass_obj
def unet_command(work: Path, minutes: float, batch: int, compiled: bool) -> None:
    """Train the U-Net; goes on where it was."""
    train_unet(work, minutes, batch=batch, compiled=compiled)


@main.command("decoder")
@click.option("--minutes", default=30.0, show_default=True)
@click.pass_obj
def decoder_command(work: Path, minutes: float) -> None:
    """Train the autoencoder's decoder."""
    train_decoder(work, minutes)


@main.command("keep")
@click.option("--unet/--no-unet", default=True, help="Whether the U-Net's weights are kept too.")
@click.pass_obj
def keep_command(work: Path, unet: bool) -> None:
    """Write small weights, curve and recipe into tools/assets/plain-base."""
    keep(work, unet=unet)


@main.command("export")
@click.argument("folder", type=click.Path(path_type=Path))
@click.pass_obj
def export_command(work: Path, folder: Path) -> None:
    """Write FOLDER as a StableDiffusionPipeline."""
    export(work, folder)


if __name__ == "__main__":
    main()
