"""Train the demo base model from scratch: VAE, text encoder, then U-Net with text encoder.

    python tools/train_demo_base.py --minutes 150     # goes on from its last checkpoint
    python tools/train_demo_base.py --stage export    # write cones_registry/demo/base

Every stage renders its own pictures (`cones_registry.demo.world`), so nothing is downloaded.
Stages keep their state in `--work`; a finished stage is skipped, the U-Net stage resumes. Where
`--work` is empty it goes on from the base in `--out`, which records how long it was trained.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cones_registry.demo import world

CONTEXT = 36  # tokens of a caption; four things with ornaments need 35
WIDTH = 256  # text encoder width = cross-attention width
LATENT_CHANNELS = 12
READING = 0.2  # weight of reading captions beside drawing them
RECORD = "training.json"
BASE_FOLDER = Path(__file__).parent.parent / "cones_registry" / "demo" / "base"


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges make one token of every word of the world."""
    merges: list[tuple[str, str]] = []
    pieces: dict[str, int] = {}
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,'-<>*"
    for letter in letters:
        pieces[letter] = len(pieces)
    for letter in letters:
        pieces[letter + "</w>"] = len(pieces)
    for word in world.WORDS:
        parts = _split([*word[:-1], word[-1] + "</w>"], merges)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            pieces.setdefault(parts[0], len(pieces))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        pieces[special] = len(pieces)
    return CLIPTokenizer(vocab=pieces, merges=merges, model_max_length=CONTEXT)


def _split(parts: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encode ``parts`` with the merges so far, earliest merge first."""
    rank = {merge: number for number, merge in enumerate(merges)}
    while True:
        pairs = [
            (rank[pair], at)
            for at in range(len(parts) - 1)
            if (pair := (parts[at], parts[at + 1])) in rank
        ]
        if not pairs:
            return parts
        _, at = min(pairs)
        parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]


def build_vae() -> AutoencoderTiny:
    """8 x 8 latents of 12 channels from 32 x 32 pixels."""
    return AutoencoderTiny(
        encoder_block_out_channels=(48, 48, 48),
        decoder_block_out_channels=(48, 48, 48),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(2, 2, 1),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=1.0,
    )


@torch.no_grad()
def fit_encoder(vae: AutoencoderTiny, pictures: torch.Tensor) -> None:
    """Write the principal components of 4 x 4 patches into the encoder: exact, no training.

    Two stride-2 convolutions move each patch's 48 values into 48 channels, the residual blocks
    between them pass values in [0, 1] unchanged, the last convolution projects. Component i is
    scaled by deviation ** -0.5: coarse ones stay larger, so high noise hides them last.
    """
    layers = vae.encoder.layers
    convolutions = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
    for layer in layers:
        if not isinstance(layer, torch.nn.Conv2d):
            layer.conv[-1].weight.zero_()
            layer.conv[-1].bias.zero_()
    enter, *halve, leave = convolutions
    for convolution in convolutions:
        convolution.weight.zero_()
        if convolution.bias is not None:
            convolution.bias.zero_()
    for channel in range(3):
        enter.weight[channel, channel, 1, 1] = 1
    for number, convolution in enumerate(halve):
        width = 3 * 4**number
        for offset, (down, across) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            for channel in range(width):
                convolution.weight[offset * width + channel, channel, 1 + down, 1 + across] = 1
    leave.weight[:, :, 1, 1] = torch.eye(LATENT_CHANNELS, leave.weight.shape[1])
    patches = halve[1](halve[0](enter(pictures.add(1).div(2))))
    flat = patches.permute(0, 2, 3, 1).reshape(-1, patches.shape[1])
    mean = flat.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(flat.T))
    kept = torch.arange(len(values) - 1, len(values) - 1 - LATENT_CHANNELS, -1)
    scale = values[kept] ** -0.25
    scale /= (values[kept] * scale**2).mean().sqrt()  # unit variance over all channels
    project = vectors[:, kept].T * scale[:, None]
    leave.weight[:, :, 1, 1] = project
    leave.bias.copy_(-project @ mean)
    explained = float(values[kept].sum() / values.sum())
    click.echo(f"encoder: {LATENT_CHANNELS} components explain {explained:.2%}", err=True)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # number of heads: the name is diffusers' own
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Predicts the clean latents; the last timestep is pure noise, so layout follows the text."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def pixels(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [n, 32, 32, 3] -> float32 [n, 3, 32, 32] in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def train_decoder(vae: AutoencoderTiny, minutes: float, generator: np.random.Generator) -> None:
    """The decoder learns to draw pictures from latents with a little noise on them."""
    vae.to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    pool = [*world.things(), *world.HELD_OUT]
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=2e-3, betas=(0.9, 0.99))
    started, step = time.monotonic(), 0
    while (part := (time.monotonic() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * part))
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (0.99 * cosine + 0.01)
        counts = generator.choice([1, 2, 3, 4], 16, p=[0.2, 0.2, 0.3, 0.3])
        scenes = [world.random_scene(generator, int(count), pool) for count in counts]
        picture = pixels(world.render(scenes, generator))
        latents = vae.encode(picture).latents
        spread = 0.25 * torch.rand(len(latents), 1, 1, 1)
        difference = vae.decode(latents + spread * torch.randn_like(latents)).sample - picture
        loss = difference.abs().mean() + difference.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            click.echo(f"decoder {step} {part:.0%} L1 {difference.abs().mean():.4f}", err=True)
    vae.encoder.requires_grad_(True)


@torch.no_grad()
def make_latents(
    vae: AutoencoderTiny, scenes: list[world.Scene], generator: np.random.Generator
) -> torch.Tensor:
    """float32 [n, 12, 8, 8]: the latents of freshly rendered pictures."""
    return torch.cat(
        [
            vae.encode(pixels(world.render(scenes[at : at + 64], generator))).latents
            for at in range(0, len(scenes), 64)
        ]
    )


def random_captions(scene: world.Scene, generator: np.random.Generator) -> tuple[str, str]:
    """What the things are called, and what the rest of the caption has read.

    Mostly one caption, the whole truth; sometimes less, and placeholders stand for a thing unseen.
    In one of four the rest has read placeholders: see ``encode_text``.
    """
    if generator.random() < 0.1:
        return "", ""
    if generator.random() < 0.25:
        vague = {
            number: f"{generator.choice(world.PLACEHOLDERS)} {thing.shape}"
            for number, (_, thing) in enumerate(scene.things)
            if generator.random() < 0.75
        }
        return scene.caption(), scene.caption(names=vague)
    names = {}
    for number, (_, thing) in enumerate(scene.things):
        chance = generator.random()
        if chance < 0.08:
            names[number] = f"{generator.choice(world.PLACEHOLDERS)} {thing.shape}"
        elif chance < 0.12:
            names[number] = thing.shape
    caption = scene.caption(names=names, background=bool(generator.random() > 0.05))
    return caption, caption


class Reader(torch.nn.Module):
    """Reads a thing's attributes off the text encoder's row of its noun (pre-training only)."""

    sizes = (len(world.SHAPES), len(world.COLOURS), 3, len(world.COLOURS) + 1, len(world.PLACES))

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(WIDTH, sum(self.sizes))
        self.background = torch.nn.Linear(WIDTH, len(world.BACKGROUNDS))

    def loss(
        self, rows: torch.Tensor, ids: torch.Tensor, scenes: list[world.Scene], nouns: torch.Tensor
    ) -> torch.Tensor:
        labels = torch.tensor(
            [attributes(place, thing) for scene in scenes for place, thing in scene.things]
        )
        found = rows[torch.isin(ids, nouns)]  # nouns in caption order, as the labels
        parts = self.head(found).split(self.sizes, dim=1)
        loss = sum(
            (functional.cross_entropy(part, labels[:, at]) for at, part in enumerate(parts)),
            rows.new_zeros(()),
        )
        last = (ids == ids[:, -1:]).int().argmax(1) - 1  # the word before the first end token
        grounds = torch.tensor(
            [list(world.BACKGROUNDS).index(scene.background) for scene in scenes]
        )
        return loss + functional.cross_entropy(
            self.background(rows[torch.arange(len(ids)), last]), grounds
        )


def attributes(place: str, thing: world.Thing) -> list[int]:
    """Class numbers: shape, colour, texture, second colour (last = none), place."""
    colours = list(world.COLOURS)
    return [
        world.SHAPES.index(thing.shape),
        colours.index(thing.colour),
        world.TEXTURES.index(thing.texture),
        len(colours) if thing.second is None else colours.index(thing.second),
        list(world.PLACES).index(place),
    ]


def train_text(
    text: CLIPTextModel, tokenizer: CLIPTokenizer, steps: int, generator: np.random.Generator
) -> None:
    """A text encoder that has read captions first: the U-Net then learns to follow it sooner."""
    reader = Reader()
    optimizer = torch.optim.AdamW([*text.parameters(), *reader.parameters()], lr=1e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 100) * (1 - 0.9 * step / steps)
        loss = reading_loss(reader, text, tokenizer, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            click.echo(f"text {step + 1}/{steps} loss {loss:.4f}", err=True)


def reading_loss(
    reader: Reader,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    generator: np.random.Generator,
) -> torch.Tensor:
    """How badly ``reader`` reads 32 fresh captions of one to four things."""
    pool = world.things()
    scenes = [
        world.random_scene(generator, int(count), pool) for count in generator.integers(1, 5, 32)
    ]
    ids = tokenize(tokenizer, [scene.caption() for scene in scenes])
    return reader.loss(text(ids).last_hidden_state, ids, scenes, noun_ids(tokenizer))


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """int64 [n, CONTEXT], padded as the pipeline pads."""
    ids = tokenizer(captions, padding="max_length", max_length=CONTEXT, truncation=True).input_ids
    return torch.tensor(ids)


def noun_ids(tokenizer: CLIPTokenizer) -> torch.Tensor:
    """int64 [shapes]."""
    names = [f"{shape}</w>" for shape in world.SHAPES]
    return torch.tensor(tokenizer.convert_tokens_to_ids(names))


def encode_text(
    text: CLIPTextModel,
    named: torch.Tensor,
    ids: torch.Tensor,
    empty: torch.Tensor,
    nouns: torch.Tensor,
    drop: float,
) -> torch.Tensor:
    """Rows of the text encoder [n, CONTEXT, WIDTH] for the captions ``ids``.

    The rows of every noun and of the word before it come from the same things in the captions
    ``named``: what a thing looks like must be read at its own words, whatever the words around it
    have read. In a share ``drop`` of the captions the rows after the last word are those of the
    empty caption: what a picture shows must be read from its words.
    """
    rows = text(torch.cat([ids, named, empty])).last_hidden_state
    rows, own, nothing = rows[: len(ids)], rows[len(ids) : -1], rows[-1:]
    here, there = torch.isin(ids, nouns), torch.isin(named, nouns)  # as many, in one order
    rows = rows.clone()
    rows[here] = own[there]
    rows[here.roll(-1, 1)] = own[there.roll(-1, 1)]
    after = ids == ids[:, -1:]  # end and padding are one token
    dropped = (torch.rand(len(ids), 1) < drop) & after
    return torch.where(dropped[..., None], nothing, rows)


class Training:
    """The U-Net stage: models, averaged weights, optimizer, and their checkpoint."""

    def __init__(self, text: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        self.models = torch.nn.ModuleDict({"text": text, "unet": unet})
        self.restart_average()
        self.optimizer = torch.optim.AdamW(
            self.models.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
        )
        self.step = 0
        self.seconds = 0.0

    def save(self, path: Path) -> None:
        state = {
            "models": self.models.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        aside = path.with_suffix(".new")
        torch.save({**state, "step": self.step, "seconds": self.seconds}, aside)
        aside.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.models.load_state_dict(state["models"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def load_base(self, folder: Path) -> None:
        """Go on from exported weights, with a fresh optimizer."""
        for name, kind in (("text", "text_encoder"), ("unet", "unet")):
            (file,) = (folder / kind).glob("*.safetensors")
            state = {key: value.float() for key, value in load_file(file).items()}
            self.models[name].load_state_dict(state)
        self.restart_average()
        record = json.loads((folder / RECORD).read_text())
        self.step, self.seconds = record["steps"], record["seconds"]

    def restart_average(self) -> None:
        self.average = {name: value.clone() for name, value in self.models.state_dict().items()}

    @torch.no_grad()
    def follow(self) -> None:
        # Short: as the rate falls the weights settle, and a long one would mix in what they were.
        keep = min(0.99, (1 + self.step) / (10 + self.step))
        for name, value in self.models.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - keep)
            else:
                self.average[name].copy_(value)


def counts_at(part: float) -> list[float]:
    """Shares of scenes with one to four things: alone first, then in company."""
    if part < 0.3:
        return [0.85, 0.15, 0.0, 0.0]
    if part < 0.5:
        return [0.5, 0.5, 0.0, 0.0]
    return [0.15, 0.25, 0.3, 0.3] if part < 0.9 else [0.25, 0.35, 0.2, 0.2]


def train_unet(
    training: Training,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderTiny,
    minutes: float,
    work: Path,
    seed: int,
) -> None:
    """x0 prediction, loss weight 1 + min(SNR, 4) / 4: high noise counts, it decides the layout."""
    generator = np.random.default_rng(seed + training.step)
    torch.manual_seed(seed + training.step)
    bank = LatentBank(vae, generator)
    empty, nouns = tokenize(tokenizer, [""]), noun_ids(tokenizer)
    alphas = build_scheduler().alphas_cumprod
    text, unet = training.models["text"], training.models["unet"]
    reader = fitted_reader(text, tokenizer, generator)
    reading = torch.optim.AdamW(reader.parameters(), lr=1e-3)
    saved = time.monotonic()
    while (part := training.seconds / (60 * minutes)) < 1:
        begun = time.monotonic()
        if not bank.scenes or training.step % 200 == 0:
            bank.refill(counts_at(part))
        for group in training.optimizer.param_groups:
            group["lr"] = learning_rate(part, training.step)
        latents, named, captions = bank.draw(32)
        noisy, timestep = add_noise(latents, alphas, placing_share(part))
        rows = encode_text(
            text, tokenize(tokenizer, named), tokenize(tokenizer, captions), empty, nouns, 0.7
        )
        error = (unet(noisy, timestep, rows).sample - latents).square().mean((1, 2, 3))
        snr = alphas[timestep] / (1 - alphas[timestep])
        loss = (error * (1 + snr.clamp(max=4) / 4)).mean()
        read = reading_loss(reader, text, tokenizer, generator)
        training.optimizer.zero_grad()
        reading.zero_grad()
        (loss + READING * read).backward()
        torch.nn.utils.clip_grad_norm_(training.models.parameters(), 1.0)
        training.optimizer.step()
        reading.step()
        training.step += 1
        training.follow()
        training.seconds += time.monotonic() - begun
        if training.step % 100 == 0:
            last = error.detach()[timestep == 999].mean()
            click.echo(
                f"unet {training.step} {part:.1%} loss {loss:.4f} from nothing {last:.4f} "
                f"reading {read:.4f}",
                err=True,
            )
        if time.monotonic() - saved > 180:
            training.save(work / "unet.pt")
            saved = time.monotonic()
    training.save(work / "unet.pt")


def placing_share(part: float) -> float:
    """Share of a batch that learns placing; again when scenes of three and four things come."""
    return 0.5 if part < 0.88 else 0.1


def fitted_reader(
    text: CLIPTextModel, tokenizer: CLIPTokenizer, generator: np.random.Generator
) -> Reader:
    """A reader of the text encoder as it is: it goes on learning beside the U-Net.

    Without it the text encoder forgets to write the place of the second to fourth thing into its
    noun's row (for two things the U-Net needs only the first one's), and scenes of three and four
    things stay mixed.
    """
    reader = Reader()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=1e-2)
    text.requires_grad_(False)
    for _ in range(150):
        optimizer.zero_grad()
        reading_loss(reader, text, tokenizer, generator).backward()
        optimizer.step()
    text.requires_grad_(True)
    return reader


def add_noise(
    latents: torch.Tensor, alphas: torch.Tensor, layout: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy latents [n, C, 8, 8] and their timesteps [n].

    A share ``layout`` starts from the last timestep with noise of random strength, often weak:
    where noise is weak, the padding of the convolutions tells the model where a cell lies, and
    only the text tells what belongs there. Placing is learnt there first, then under full noise;
    without this it was not learnt in 2,800 steps.
    """
    count = len(latents)
    high = torch.rand(count) < 0.25
    timestep = torch.where(
        high, torch.randint(800, 1000, (count,)), torch.randint(0, 1000, (count,))
    )
    strength = torch.ones(count)
    placing = torch.rand(count) < layout
    timestep[placing] = 999
    strength[placing] = torch.rand(int(placing.sum())) ** 2
    alpha = alphas[timestep][:, None, None, None]
    noise = torch.randn_like(latents) * strength[:, None, None, None]
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, timestep


def learning_rate(part: float, step: int) -> float:
    """Warm-up, level, then cosine from 88 % of the time on."""
    level = 1.0 if part < 0.88 else 0.5 * (1 + math.cos(math.pi * (part - 0.88) / 0.12))
    return 1e-3 * min(1.0, (step + 1) / 200) * (0.98 * level + 0.02)


class LatentBank:
    """A stock of encoded scenes, a share of it replaced by new ones as training goes."""

    def __init__(self, vae: AutoencoderTiny, generator: np.random.Generator) -> None:
        self.vae, self.generator, self.pool = vae, generator, world.things()
        self.scenes: list[world.Scene] = []
        self.latents = torch.empty(0, LATENT_CHANNELS, 8, 8)

    def refill(self, shares: list[float], *, most: int = 24_000, fresh: int = 800) -> None:
        count = 6_000 if not self.scenes else fresh
        numbers = self.generator.choice([1, 2, 3, 4], count, p=shares)
        scenes = [world.random_scene(self.generator, int(number), self.pool) for number in numbers]
        latents = make_latents(self.vae, scenes, self.generator)
        self.scenes = [*self.scenes, *scenes][-most:]
        self.latents = torch.cat([self.latents, latents])[-most:]

    def draw(self, count: int) -> tuple[torch.Tensor, list[str], list[str]]:
        """Latents, and both captions of each (``random_captions``)."""
        chosen = self.generator.integers(len(self.scenes), size=count)
        pairs = [random_captions(self.scenes[at], self.generator) for at in chosen]
        named, captions = zip(*pairs, strict=True)
        return self.latents[torch.from_numpy(chosen)], list(named), list(captions)


def export(
    training: Training, tokenizer: CLIPTokenizer, vae: AutoencoderTiny, folder: Path
) -> None:
    """Write the pipeline with the averaged weights, float16 safetensors."""
    models = {"text": build_text_encoder(tokenizer), "unet": build_unet()}
    for name, model in models.items():
        prefix = f"{name}."
        model.load_state_dict(
            {k.removeprefix(prefix): v for k, v in training.average.items() if k.startswith(prefix)}
        )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=models["text"],
        tokenizer=tokenizer,
        unet=models["unet"],
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)
    # The best setting measured: tools/results/demo-base.md.
    defaults = {"steps": 20, "guidance_scale": 2.0}
    (folder / "generation_defaults.json").write_text(json.dumps(defaults) + "\n")
    record = {"steps": training.step, "seconds": round(training.seconds)}
    (folder / RECORD).write_text(json.dumps(record) + "\n")


@click.command()
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("build/demo-base"), show_default=True
)
@click.option(
    "--stage", type=click.Choice(["unet", "decoder", "export"]), default="unet", show_default=True
)
@click.option("--decoder-minutes", default=9.0, show_default=True)
@click.option("--text-steps", default=1500, show_default=True)
@click.option(
    "--minutes", default=150.0, show_default=True, help="Time for the U-Net, all runs together."
)
@click.option("--out", type=click.Path(path_type=Path), default=BASE_FOLDER, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    work: Path,
    stage: str,
    decoder_minutes: float,
    text_steps: int,
    minutes: float,
    out: Path,
    threads: int,
    seed: int,
) -> None:
    """Train the demo base model, or go on where training stopped, and write it to OUT."""
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    tokenizer = build_tokenizer()
    if not (work / "vae").is_dir() and (out / "vae").is_dir():
        shutil.copytree(out / "vae", work / "vae")
    vae = load_vae(work, generator)
    if stage == "decoder":
        train_decoder(vae, decoder_minutes, generator)
        vae.save_pretrained(work / "vae")
        return
    vae.requires_grad_(False)
    training = Training(build_text_encoder(tokenizer), build_unet())
    if (work / "unet.pt").is_file():
        training.load(work / "unet.pt")
    elif (out / RECORD).is_file():
        training.load_base(out)
    else:
        text = training.models["text"]
        train_text(text, tokenizer, text_steps, generator)
        training.restart_average()
    if stage == "unet":
        train_unet(training, tokenizer, vae, minutes, work, seed)
    export(training, tokenizer, vae, out)
    click.echo(f"{training.step} steps, {training.seconds:.0f} s: {out}")


def load_vae(work: Path, generator: np.random.Generator) -> AutoencoderTiny:
    """The autoencoder as it stands, or a new one with its encoder fitted."""
    if (work / "vae").is_dir():
        return AutoencoderTiny.from_pretrained(work / "vae")
    vae = build_vae()
    counts = generator.integers(1, 5, 2048)
    scenes = [world.random_scene(generator, int(count), world.things()) for count in counts]
    fit_encoder(vae, pixels(world.render(scenes, generator)))
    vae.save_pretrained(work / "vae")
    return vae


if __name__ == "__main__":
    main()
