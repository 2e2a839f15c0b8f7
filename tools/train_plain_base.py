"""Train the world's base model plainly, as Stable Diffusion was: pictures and captions, no more.

    python tools/train_plain_base.py                    # goes on from its last checkpoint
    python tools/train_plain_base.py --stage export     # write the pipeline to --out

What was trained is kept in tools/assets/plain-shapes; the pipeline is made of it by

    python tools/train_plain_base.py --stage export --start tools/assets/plain-shapes

Training starts from the weights in ``--start`` (the shipped demo base) and forgets what that base
was helped with: no row of a caption is swapped or dropped, no placeholder is ever read, no reader
stands beside the U-Net. Scenes have one to four things equally often. Captions are what people
write: a quarter names bare nouns alone, a third is mixed, places and background are sometimes left
out, and a tenth is empty, for guidance.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file
from train_demo_base import (
    BASE_FOLDER,
    RECORD,
    LatentBank,
    Training,
    add_noise,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    export,
    tokenize,
)
from transformers import CLIPTokenizer

from cones_registry.demo import world

RATE = 6e-4
BATCH = 32
WEAK_NOISE = 0.1  # share of a batch that starts from weak noise: see `add_noise`
EMPTY, BARE, MIXED = 0.1, 0.25, 1 / 3  # shares of captions
UNPLACED, NO_BACKGROUND = 0.15, 0.15


def write_caption(scene: world.Scene, generator: np.random.Generator) -> str:
    """One of the captions that a person could have written under ``scene``."""
    if generator.random() < EMPTY:
        return ""
    kind = generator.random()
    bare_share = 1.0 if kind < BARE else 0.5 if kind < BARE + MIXED else 0.0
    placed = generator.random() >= UNPLACED
    parts = []
    for place, thing in scene.things:
        words = thing.shape if generator.random() < bare_share else thing.words()
        parts.append(f"at {place} a {words}" if placed else f"a {words}")
    ground = "" if generator.random() < NO_BACKGROUND else f" on {scene.background}"
    return " and ".join(parts) + ground


class PlainBank(LatentBank):
    """A stock of encoded scenes of one to four things."""

    def draw_plain(self, count: int) -> tuple[torch.Tensor, list[str]]:
        """Latents [count, C, 8, 8] and one caption of each."""
        chosen = self.generator.integers(len(self.scenes), size=count)
        captions = [write_caption(self.scenes[at], self.generator) for at in chosen]
        return self.latents[torch.from_numpy(chosen)], captions


def rate_at(step: int, steps: int) -> float:
    """Warm-up, level, then cosine from half of the steps on."""
    part = step / steps
    level = 1.0 if part < 0.5 else 0.5 * (1 + math.cos(math.pi * (part - 0.5) / 0.5))
    return RATE * min(1.0, (step + 1) / 100) * (0.98 * level + 0.02)


def train(
    training: Training,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderTiny,
    steps: int,
    work: Path,
    seed: int,
) -> None:
    """x0 prediction, loss weight 1 + min(SNR, 4) / 4, until ``steps`` are done."""
    generator = np.random.default_rng(seed + training.step)
    torch.manual_seed(seed + training.step)
    bank = PlainBank(vae, generator)
    alphas = build_scheduler().alphas_cumprod
    text, unet = training.models["text"], training.models["unet"]
    saved, losses = time.monotonic(), []
    while training.step < steps:
        begun = time.monotonic()
        if not bank.scenes or training.step % 200 == 0:
            bank.refill([0.25] * 4)
        for group in training.optimizer.param_groups:
            group["lr"] = rate_at(training.step, steps)
        latents, captions = bank.draw_plain(BATCH)
        noisy, timestep = add_noise(latents, alphas, WEAK_NOISE)
        rows = text(tokenize(tokenizer, captions)).last_hidden_state
        error = (unet(noisy, timestep, rows).sample - latents).square().mean((1, 2, 3))
        snr = alphas[timestep] / (1 - alphas[timestep])
        loss = (error * (1 + snr.clamp(max=4) / 4)).mean()
        training.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(training.models.parameters(), 1.0)
        training.optimizer.step()
        training.step += 1
        training.follow()
        training.seconds += time.monotonic() - begun
        losses.append(float(loss.detach()))
        if training.step % 50 == 0:
            pace = training.seconds / training.step
            click.echo(
                f"{training.step}/{steps} loss {np.mean(losses):.4f} {pace:.2f} s a step", err=True
            )
            losses.clear()
        if time.monotonic() - saved > 120:
            training.save(work / "plain.pt")
            saved = time.monotonic()
    training.save(work / "plain.pt")


@click.command()
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("build/plain-base"), show_default=True
)
@click.option("--stage", type=click.Choice(["train", "export"]), default="train")
@click.option("--start", type=click.Path(path_type=Path), default=BASE_FOLDER, show_default=True)
@click.option("--steps", default=5500, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("build/plain-base/base"),
    show_default=True,
)
@click.option("--threads", default=1, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    work: Path, stage: str, start: Path, steps: int, out: Path, threads: int, seed: int
) -> None:
    """Train until `--steps` are done, or export what the last checkpoint holds."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    vae = AutoencoderTiny.from_pretrained(BASE_FOLDER / "vae", torch_dtype=torch.float32)
    training = Training(build_text_encoder(tokenizer), build_unet())
    if (work / "plain.pt").exists():
        training.load(work / "plain.pt")
    else:
        start_from(training, start)
    if stage == "train":
        train(training, tokenizer, vae, steps, work, seed)
    export(training, tokenizer, vae, out)
    record = {
        "recipe": "plain",
        "started_from": json.loads((start / RECORD).read_text()),
        "steps": training.step,
        "seconds": round(training.seconds),
    }
    (out / RECORD).write_text(json.dumps(record) + "\n")


def start_from(training: Training, folder: Path) -> None:
    """Take exported weights, of a pipeline or kept; steps, average and optimizer begin anew."""
    for name, kind in (("text", "text_encoder"), ("unet", "unet")):
        kept = folder / f"{kind}.safetensors"
        (file,) = [kept] if kept.is_file() else (folder / kind).glob("*.safetensors")
        state = {key: value.float() for key, value in load_file(file).items()}
        training.models[name].load_state_dict(state)
    training.restart_average()


if __name__ == "__main__":
    main()
