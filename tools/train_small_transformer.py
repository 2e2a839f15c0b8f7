"""Train a small transformer by flow matching on the demo world: PixArt made small.

    python tools/train_small_transformer.py train --minutes 120   # goes on from its last checkpoint
    python tools/train_small_transformer.py look SHEET.png        # draws and judges single things
    python tools/train_small_transformer.py keep                  # into tools/assets
    python tools/train_small_transformer.py export FOLDER         # a PixArtAlphaPipeline folder

A ``PixArtTransformer2DModel`` reads 16 patches of the demo base's latents (2 x 2 positions each)
and, by cross-attention, rows of the text encoder of ``tools/assets/plain-shapes``, which stays as
it is. It answers the velocity ε − x of straight paths (1 − σ) x + σ ε, as Sana and Stable Diffusion
3 do. Captions are what people write; nothing in training knows of concepts, placeholders or masks.

Everything is kept in ``--work``, with the optimizer's state, every three minutes; where that folder
is empty, training goes on from ``tools/assets/small-transformer``. ``recipe.json`` in the folder
holds what a run may change while it goes on (:class:`Recipe`); the curve and each change of the
recipe stand in ``curve.jsonl``.
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
import torch
from diffusers import (
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from train_demo_base import (
    BASE_FOLDER,
    LATENT_CHANNELS,
    WIDTH,
    build_text_encoder,
    build_tokenizer,
    make_latents,
)
from train_plain_base import write_caption
from transformers import CLIPTextModel

from cones_registry.demo import world
from cones_registry.demo.judge import Judge, accuracy

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build" / "small-transformer"
ASSETS = Path(__file__).parent / "assets"
KEPT = ASSETS / "small-transformer"
TEXT = ASSETS / "plain-shapes" / "text_encoder.safetensors"
HEADS, HEAD_WIDTH, BLOCKS = 5, 32, 6
CONTEXT = 120  # rows that the pipeline pads a prompt to
SAVE_EVERY = 180  # seconds
JUDGE_EVERY = 500  # steps
ROOM = 12_000  # scenes in stock


@dataclass(frozen=True)
class Recipe:
    """What a run may change while it goes on, by editing ``recipe.json``.

    Attributes:
        rate: learning rate of AdamW.
        shares: of scenes with one, two, three and four things.
        told: share of captions that describe everything; the others leave words out.
        empty: share of captions left empty, for guidance.
        high: share of noise levels drawn evenly from .7 to 1, where the text alone decides; the
            others are logit-normal.
        average: most of the past that the averaged weights keep at each step.
        falls_from, steps: between these steps the rate falls to a twentieth along a cosine.
    """

    rate: float = 1.5e-3
    shares: tuple[float, float, float, float] = (0.9, 0.1, 0.0, 0.0)
    told: float = 0.75
    empty: float = 0.08
    high: float = 0.4
    average: float = 0.995
    falls_from: int = 8_000
    steps: int = 14_000

    @classmethod
    def read(cls, work: Path) -> Recipe:
        """The folder's recipe; the first time this class's own values are written there."""
        file = work / "recipe.json"
        if not file.exists():
            file.write_text(json.dumps(asdict(cls()), indent=1) + "\n", encoding="utf-8")
        values = json.loads(file.read_text(encoding="utf-8"))
        return cls(**(values | {"shares": tuple(values["shares"])}))

    def rate_at(self, step: int, since_start: int) -> float:
        """The learning rate at ``step``; it rises for 100 steps wherever a run begins."""
        part = (step - self.falls_from) / max(1, self.steps - self.falls_from)
        level = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, part))))
        return self.rate * min(1.0, (since_start + 1) / 100) * (0.95 * level + 0.05)


def build_transformer() -> PixArtTransformer2DModel:
    """Random weights; every block acts from the start, and the answer starts at zero."""
    width = HEADS * HEAD_WIDTH
    transformer = PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=BLOCKS,
        cross_attention_dim=width,
        caption_channels=WIDTH,
        sample_size=8,
        patch_size=2,
    )
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        for block in transformer.transformer_blocks:
            block.scale_shift_table.zero_()
            block.scale_shift_table[[2, 5]] = 1.0  # the gates of self-attention and feed-forward
            for out in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]):
                out.weight.mul_((3 * BLOCKS) ** -0.5)
        nn.init.normal_(transformer.adaln_single.linear.weight, std=0.02)
        transformer.scale_shift_table.zero_()
        transformer.proj_out.weight.zero_()
    return transformer


def load_text_encoder() -> CLIPTextModel:
    """The plainly trained text encoder; positions behind its own hold nothing and are masked."""
    text = build_text_encoder(build_tokenizer())
    text.load_state_dict({name: each.float() for name, each in load_file(TEXT).items()})
    return text.eval().requires_grad_(False)


def lengthened(text: CLIPTextModel) -> CLIPTextModel:
    """The same text encoder for ``CONTEXT`` rows."""
    config = text.config
    config.max_position_embeddings = CONTEXT
    longer = CLIPTextModel(config)
    state = text.state_dict()
    (name,) = [name for name in state if name.endswith("position_embedding.weight")]
    state[name] = torch.cat([state[name], torch.zeros(CONTEXT - len(state[name]), WIDTH)])
    longer.load_state_dict(state)
    return longer.eval()


def load_autoencoder() -> AutoencoderTiny:
    """The demo base's: 8 x 8 latents of 12 channels."""
    return AutoencoderTiny.from_pretrained(
        BASE_FOLDER / "vae", torch_dtype=torch.float32
    ).requires_grad_(False)


@torch.no_grad()
def encode(text: CLIPTextModel, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Rows float32 [n, T, WIDTH] as long as the longest caption, and which of them count [n, T]."""
    read = build_encoder_input(captions)
    rows = text(read["input_ids"], attention_mask=read["attention_mask"]).last_hidden_state
    return rows, read["attention_mask"]


_TOKENIZER = build_tokenizer()


def build_encoder_input(captions: Sequence[str]) -> dict[str, Tensor]:
    """Token ids and mask, padded to the longest caption."""
    return dict(_TOKENIZER(list(captions), padding="longest", return_tensors="pt"))


class Bank:
    """Captioned scenes, their latents and rows of text, renewed while training goes on."""

    def __init__(
        self, vae: AutoencoderTiny, text: CLIPTextModel, generator: np.random.Generator
    ) -> None:
        self.vae, self.text, self.generator = vae, text, generator
        self.pool = world.things()
        self.codes = torch.empty(ROOM, LATENT_CHANNELS, 8, 8)
        self.rows: list[Tensor] = []
        self.next = 0

    def renew(self, recipe: Recipe, count: int) -> None:
        """Add ``count`` scenes, in the place of the oldest once there is no more room."""
        numbers = self.generator.choice([1, 2, 3, 4], count, p=recipe.shares)
        scenes = [world.random_scene(self.generator, int(number), self.pool) for number in numbers]
        codes = make_latents(self.vae, scenes, self.generator)
        captions = [self._caption(scene, recipe) for scene in scenes]
        for start in range(0, count, 200):
            rows, kept = encode(self.text, captions[start : start + 200])
            for at, (row, mask) in enumerate(zip(rows, kept, strict=True)):
                own = row[: int(mask.sum())].clone()
                if len(self.rows) < ROOM:
                    self.rows.append(own)
                else:
                    self.rows[self.next] = own
                self.codes[self.next] = codes[start + at]
                self.next = (self.next + 1) % ROOM

    def _caption(self, scene: world.Scene, recipe: Recipe) -> str:
        chance = float(self.generator.random())
        if chance < recipe.empty:
            return ""
        if chance < recipe.empty + recipe.told:
            return scene.caption()
        return write_caption(scene, self.generator)

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [n, 12, 8, 8], rows of their captions [n, T, WIDTH] and their mask [n, T]."""
        chosen = self.generator.integers(len(self.rows), size=count)
        rows = nn.utils.rnn.pad_sequence([self.rows[at] for at in chosen], batch_first=True)
        lengths = torch.tensor([len(self.rows[at]) for at in chosen])
        mask = (torch.arange(rows.shape[1]) < lengths[:, None]).float()
        return self.codes[torch.from_numpy(chosen)], rows, mask


def draw_levels(count: int, recipe: Recipe) -> Tensor:
    """Noise levels σ [n] in (0, 1]."""
    levels = torch.sigmoid(torch.randn(count))
    high = torch.rand(count) < recipe.high
    return torch.where(high, 0.7 + 0.3 * torch.rand(count), levels)


def velocity(
    transformer: PixArtTransformer2DModel, noisy: Tensor, sigmas: Tensor, rows: Tensor, mask: Tensor
) -> Tensor:
    """What the transformer answers for noisy latents [n, 12, 8, 8] at levels [n]."""
    answer: Tensor = transformer(
        noisy,
        encoder_hidden_states=rows,
        timestep=1000 * sigmas,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        encoder_attention_mask=mask,
        return_dict=False,
    )[0]
    return answer


@dataclass
class Training:
    """The transformer as it is being trained, and what is needed to go on.

    Attributes:
        average: running mean of its weights, in the order of its parameters.
        steps, seconds: over all sessions; seconds of processor time.
    """

    transformer: PixArtTransformer2DModel
    average: list[Tensor]
    optimizer: torch.optim.Optimizer
    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def start(cls, work: Path) -> Training:
        """From the checkpoint in ``work``, or the kept weights, or from nothing."""
        work.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        transformer = build_transformer()
        optimizer = torch.optim.AdamW(
            transformer.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        training = cls(transformer, [], optimizer)
        if (work / "transformer.pt").exists():
            state = torch.load(work / "transformer.pt", weights_only=True)
            transformer.load_state_dict(state["transformer"])
            optimizer.load_state_dict(state["optimizer"])
            training.average = state["average"]
            training.steps, training.seconds = state["steps"], state["seconds"]
        elif (KEPT / "transformer.safetensors").exists():
            kept = load_file(KEPT / "transformer.safetensors")
            transformer.load_state_dict({name: each.float() for name, each in kept.items()})
            record = json.loads((KEPT / "training.json").read_text(encoding="utf-8"))
            training.steps, training.seconds = record["steps"], record["seconds"]
            if not (work / "recipe.json").exists():
                (work / "recipe.json").write_text(json.dumps(record["recipe"]), encoding="utf-8")
                (work / "curve.jsonl").write_bytes((KEPT / "curve.jsonl").read_bytes())
        if not training.average:
            training.average = [weight.detach().clone() for weight in transformer.parameters()]
        return training

    def averaged(self) -> PixArtTransformer2DModel:
        """A transformer of its own with the averaged weights."""
        transformer = build_transformer()
        with torch.no_grad():
            for weight, mean in zip(transformer.parameters(), self.average, strict=True):
                weight.copy_(mean)
        return transformer.eval()

    def save(self, work: Path) -> None:
        """Write ``transformer.pt`` whole or not at all."""
        state = {
            "transformer": self.transformer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "steps": self.steps,
            "seconds": self.seconds,
        }
        torch.save(state, work / "transformer.new")
        (work / "transformer.new").replace(work / "transformer.pt")


def note(work: Path, line: dict[str, object]) -> None:
    """Add a line to the curve."""
    with (work / "curve.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def train(work: Path, minutes: float, batch: int) -> None:
    """Train for so long, saving as it goes; never past the recipe's last step."""
    training = Training.start(work)
    torch.manual_seed(training.steps + 1)
    generator = np.random.default_rng(training.steps)
    transformer, optimizer = training.transformer.train(), training.optimizer
    weights = list(transformer.parameters())
    recipe = Recipe.read(work)
    note(work, {"step": training.steps, "batch": batch, "recipe": asdict(recipe)})
    vae, text = load_autoencoder(), load_text_encoder()
    bank = Bank(vae, text, generator)
    bank.renew(recipe, 3_000)
    before, first, seen = training.seconds, training.steps, []
    began, busy, saved = time.monotonic(), time.process_time(), time.monotonic()
    while time.monotonic() - began < 60 * minutes and training.steps < recipe.steps:
        if training.steps % 10 == 0:
            bank.renew(recipe, 50)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(training.steps, training.steps - first)
        codes, rows, mask = bank.draw(batch)
        sigmas = draw_levels(batch, recipe)
        noise, spread = torch.randn_like(codes), sigmas[:, None, None, None]
        noisy = (1 - spread) * codes + spread * noise
        answer = velocity(transformer, noisy, sigmas, rows, mask)
        error = (answer - (noise - codes)).square().mean((1, 2, 3))
        optimizer.zero_grad()
        error.mean().backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        training.steps += 1
        with torch.no_grad():
            kept = min(recipe.average, (1 + training.steps) / (10 + training.steps))
            torch._foreach_lerp_(training.average, weights, 1 - kept)
        training.seconds = before + time.process_time() - busy
        found = error.detach()
        seen.append([float(found[band].mean()) for band in (sigmas > 0.7, sigmas <= 0.7)])
        if training.steps % 50 == 0:
            line = {"step": training.steps, "seconds": round(training.seconds)}
            high, low = np.nanmean(seen[-50:], 0).round(4).tolist()
            note(work, line | {"high": high, "low": low, "wall": round(time.monotonic() - began)})
            if (changed := Recipe.read(work)) != recipe:
                recipe = changed
                note(work, {"step": training.steps, "recipe": asdict(recipe)})
        if training.steps % JUDGE_EVERY == 0:
            note(work, {"step": training.steps, **judged(training, vae, text, 40)[0]})
        if time.monotonic() - saved > SAVE_EVERY:
            training.save(work)
            saved = time.monotonic()
    training.save(work)


@torch.no_grad()
def judged(
    training: Training,
    vae: AutoencoderTiny,
    text: CLIPTextModel,
    count: int,
    *,
    things: int = 1,
    guidance: float = 1.5,
    steps: int = 16,
) -> tuple[dict[str, object], list[Image.Image]]:
    """What the judge sees in pictures of the averaged weights, and the pictures.

    Returns shares as ``accuracy`` gives them, and ``heard``: the error at σ = .9 with another
    scene's caption / with the right one, for pictures of the world.
    """
    generator = np.random.default_rng([7, things])
    noises = torch.Generator().manual_seed(7)
    scenes = [world.random_scene(generator, things, world.things()) for _ in range(count)]
    transformer = training.averaged()
    rows, mask = encode(text, [scene.caption() for scene in scenes])
    codes = make_latents(vae, scenes, generator)
    noise = torch.randn(codes.shape, generator=noises)
    level = torch.full((count,), 0.9)
    errors = [
        (velocity(transformer, 0.1 * codes + 0.9 * noise, level, told, which) - (noise - codes))
        .square()
        .mean()
        for told, which in ((rows.roll(1, 0), mask.roll(1, 0)), (rows, mask))
    ]
    nothing, nothing_mask = (each.expand(count, -1, -1)[:, :, ...] for each in _nothing(text))
    levels = torch.linspace(1, 0, steps + 1)
    latents = noise
    for now, then in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        at = torch.full((count,), now)
        answer = velocity(transformer, latents, at, rows, mask)
        if guidance > 1:
            plain = velocity(transformer, latents, at, nothing, nothing_mask[:, 0])
            answer = plain + guidance * (answer - plain)
        latents = latents + (then - now) * answer
    decoded = vae.decode(latents).sample.clamp(-1, 1).add(1).mul(127.5).round().byte()
    pictures = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in decoded]
    found = accuracy(scenes, Judge.load().read(pictures))
    shares = {name: round(value, 3) for name, value in found.items()}
    return {"heard": round(float(errors[0] / errors[1]), 3), **shares}, pictures


def _nothing(text: CLIPTextModel) -> tuple[Tensor, Tensor]:
    rows, mask = encode(text, [""])
    return rows, mask[:, None].float()


def keep(work: Path) -> None:
    """Write the averaged weights as float16, the curve and the recipe into ``KEPT``."""
    training = Training.start(work)
    state = training.averaged().state_dict()
    KEPT.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: each.half().contiguous() for name, each in state.items()},
        KEPT / "transformer.safetensors",
    )
    record = {
        "steps": training.steps,
        "seconds": round(training.seconds),
        "recipe": asdict(Recipe.read(work)),
        "torch": torch.__version__,
    }
    (KEPT / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (KEPT / "curve.jsonl").write_bytes((work / "curve.jsonl").read_bytes())


def export(work: Path, folder: Path) -> None:
    """Write a PixArtAlphaPipeline folder with the averaged weights as float16."""
    training = Training.start(work)
    PixArtAlphaPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=lengthened(load_text_encoder()).half(),
        vae=load_autoencoder().half(),
        transformer=training.averaged().half(),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.5
        ),
    ).save_pretrained(folder)
    defaults = json.dumps({"steps": 12, "guidance_scale": 1.5}) + "\n"
    (folder / "generation_defaults.json").write_text(defaults, encoding="utf-8")
    record = {"steps": training.steps, "seconds": round(training.seconds)}
    (folder / "training.json").write_text(json.dumps(record) + "\n", encoding="utf-8")


@click.group()
@click.option(
    "--work", type=click.Path(path_type=Path), default=WORK, help="Checkpoints and curve."
)
@click.pass_context
def main(context: click.Context, work: Path) -> None:
    """Train a small transformer by flow matching on the demo world."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    context.obj = work


@main.command("train")
@click.option("--minutes", default=120.0, show_default=True)
@click.option("--batch", default=32, show_default=True)
@click.pass_obj
def train_command(work: Path, minutes: float, batch: int) -> None:
    """Train; goes on where it was."""
    train(work, minutes, batch)


@main.command("look")
@click.argument("sheet", type=click.Path(path_type=Path))
@click.option("--things", default=1, show_default=True)
@click.option("--count", default=40, show_default=True)
@click.option("--guidance", default=1.5, show_default=True)
@click.pass_obj
def look_command(work: Path, sheet: Path, things: int, count: int, guidance: float) -> None:
    """Draw COUNT scenes onto SHEET and say what the judge sees."""
    training = Training.start(work)
    found, pictures = judged(
        training, load_autoencoder(), load_text_encoder(), count, things=things, guidance=guidance
    )
    board = Image.new("RGB", (8 * 66, 66 * math.ceil(count / 8)), "white")
    for at, picture in enumerate(pictures):
        board.paste(picture.resize((64, 64), Image.Resampling.NEAREST), (at % 8 * 66, at // 8 * 66))
    board.save(sheet)
    click.echo(json.dumps({"step": training.steps, **found}))


@main.command("keep")
@click.pass_obj
def keep_command(work: Path) -> None:
    """Write small weights, curve and recipe into tools/assets/small-transformer."""
    keep(work)


@main.command("export")
@click.argument("folder", type=click.Path(path_type=Path))
@click.pass_obj
def export_command(work: Path, folder: Path) -> None:
    """Write FOLDER as a PixArtAlphaPipeline."""
    export(work, folder)


if __name__ == "__main__":
    main()
