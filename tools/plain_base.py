"""The parts of the plain base model: tokenizer, text encoder, U-Net, latents, scheduler, folder.

It is Stable Diffusion made small: a CLIP text encoder whose last hidden states condition a
diffusers U-Net on the latents of an autoencoder. ``tools/train_base.py`` trains it on the drawn
world (``cones_registry.demo.drawn_world``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cones_registry.demo.drawn_world.pictures import render
from cones_registry.demo.drawn_world.scenes import WORDS, random_scene

CONTEXT = 36  # tokens of a caption; four things told in full with their scene need all of them
TEXT_WIDTH = 256  # width of the text encoder = width of what cross-attention reads
CHANNELS = 48  # of a latent
PATCH = 8  # pixels on a side of what one latent position holds
WIDTHS = (80, 160)  # channels of the U-Net at 8 × 8 and at 4 × 4 positions


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges make one token of every word of the world."""
    merges: list[tuple[str, str]] = []
    pieces: dict[str, int] = {}
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,'-<>*"
    for letter in (*letters, *(f"{letter}</w>" for letter in letters)):
        pieces[letter] = len(pieces)
    for word in WORDS:
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


class CaptionTokens:
    """Token ids of captions in the world's words, the same as the tokenizer's, without its cost."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        pieces = tokenizer.get_vocab()
        self.start, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.of_word = {word: pieces[f"{word}</w>"] for word in (*WORDS, ",")}

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """``int64 [captions, CONTEXT]``, padded with the end token."""
        ids = np.full((len(captions), CONTEXT), self.end, np.int64)
        ids[:, 0] = self.start
        for row, caption in enumerate(captions):
            words = [self.of_word[word] for word in caption.replace(",", " ,").split()]
            if len(words) > CONTEXT - 2:
                raise ValueError(
                    f"caption of {len(words)} words, room for {CONTEXT - 2}: {caption}"
                )
            ids[row, 1 : 1 + len(words)] = words
        return torch.from_numpy(ids)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of width 256."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> UNet2DConditionModel:
    """Two resolutions, cross-attention at both, as Stable Diffusion has it."""
    return UNet2DConditionModel(
        sample_size=64 // PATCH,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * len(WIDTHS),
        up_block_types=("CrossAttnUpBlock2D",) * len(WIDTHS),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """The U-Net predicts the latents themselves; the last timestep is noise alone."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def to_tensor(pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
    """``uint8 [side, side, 3]`` each -> ``float32 [n, 3, side, side]`` in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(pictures))
    return stacked.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_pictures(tensor: Tensor) -> NDArray[np.uint8]:
    """The way back, ``uint8 [n, side, side, 3]``."""
    values = tensor.detach().clamp(-1, 1).add(1).mul(127.5).round().byte()
    return np.asarray(values.permute(0, 2, 3, 1).numpy())


@dataclass(frozen=True)
class Latents:
    """Principal components of 8 × 8 patches: a linear code with an exact encoder.

    Component i is divided by the square root of its deviation, and all by one number, so that
    they have unit variance together: coarse ones stay larger, and high noise hides them last.

    Attributes:
        mean: ``float32 [192]``, of a patch's values in the order channel, row, column.
        project: ``float32 [CHANNELS, 192]``, from a patch without its mean to a latent.
        back: ``float32 [192, CHANNELS]``, its pseudo-inverse.
    """

    mean: Tensor
    project: Tensor
    back: Tensor

    @classmethod
    def fit(cls, pictures: Tensor) -> Latents:
        """The code for ``float32 [n, 3, 64, 64]``."""
        flat = functional.pixel_unshuffle(pictures, PATCH).permute(0, 2, 3, 1).reshape(-1, 192)
        values, vectors = torch.linalg.eigh(torch.cov(flat.T))
        values, vectors = values.flip(0)[:CHANNELS], vectors.flip(1)[:, :CHANNELS]
        scale = values**-0.25
        scale = scale / (values * scale**2).mean().sqrt()
        return cls(flat.mean(0), vectors.T * scale[:, None], vectors / scale)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Latents:
        """From what :meth:`state` gave."""
        return cls(*(state[name].float() for name in ("mean", "project", "back")))

    def state(self) -> dict[str, Tensor]:
        """What to save."""
        return {name: getattr(self, name).contiguous() for name in ("mean", "project", "back")}

    def encode(self, pictures: Tensor) -> Tensor:
        """``float32 [n, 3, 64, 64]`` in [-1, 1] -> ``float32 [n, CHANNELS, 8, 8]``."""
        patches = functional.pixel_unshuffle(pictures, PATCH) - self.mean[:, None, None]
        return torch.einsum("kc,nchw->nkhw", self.project, patches)

    def decode(self, latents: Tensor) -> Tensor:
        """The way back, linear; may leave [-1, 1]."""
        patches = torch.einsum("ck,nkhw->nchw", self.back, latents) + self.mean[:, None, None]
        return functional.pixel_shuffle(patches, PATCH)


def build_autoencoder() -> AutoencoderTiny:
    """Four resolutions; the encoder only moves and projects, see :func:`write_encoder`."""
    return AutoencoderTiny(
        encoder_block_out_channels=(192,) * 4,
        decoder_block_out_channels=(CHANNELS,) * 4,
        num_encoder_blocks=(0, 0, 0, 0),
        num_decoder_blocks=(3, 2, 0, 0),
        latent_channels=CHANNELS,
        scaling_factor=1.0,
    )


@torch.no_grad()
def write_encoder(autoencoder: AutoencoderTiny, latents: Latents) -> None:
    """Write the linear encoder exactly into the autoencoder's convolutions.

    Three convolutions of stride 2 move a patch's 192 values into 192 channels, the last one
    projects. The encoder works on pictures in [0, 1], hence the 2 and the 1.
    """
    enter, *halve, leave = [
        layer for layer in autoencoder.encoder.layers if isinstance(layer, torch.nn.Conv2d)
    ]
    for convolution in (enter, *halve, leave):
        convolution.weight.zero_()
        if convolution.bias is not None:
            convolution.bias.zero_()
    held = [(channel, 0, 0) for channel in range(3)]  # the channel, row and column held by each
    for channel in range(3):
        enter.weight[channel, channel, 1, 1] = 1
    for level, convolution in enumerate(halve):
        moved = []
        for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
            for source, (channel, row, column) in enumerate(held):
                convolution.weight[len(moved), source, 1 + down, 1 + across] = 1
                moved.append((channel, row + down * 2**level, column + across * 2**level))
        held = moved
    order = torch.tensor([channel * 64 + row * 8 + column for channel, row, column in held])
    leave.weight[:, :, 1, 1] = 2 * latents.project[:, order]
    leave.bias.copy_(-latents.project @ (latents.mean + 1))


def fit_latents(work: Path) -> Latents:
    """The latents of this folder, fitted to 1,200 pictures the first time."""
    file = work / "latents.safetensors"
    if not file.exists():
        generator = np.random.default_rng(1)
        scenes = [random_scene(generator, 1 + at % 4) for at in range(1200)]
        pictures = to_tensor([render(scene, generator) for scene in scenes])
        latents = Latents.fit(pictures)
        error = latents.decode(latents.encode(pictures)) - pictures
        click.echo(f"latents: RMSE {float(error.square().mean().sqrt()) / 2:.4f} of 1", err=True)
        save_file(latents.state(), file)
    return Latents.from_state(load_file(file))


def note(work: Path, line: dict[str, object]) -> None:
    """Add a line to the curve, and say it."""
    text = json.dumps(line)
    with (work / "curve.jsonl").open("a", encoding="utf-8") as file:
        file.write(text + "\n")
    click.echo(text, err=True)
