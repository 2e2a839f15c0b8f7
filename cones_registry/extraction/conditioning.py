"""Text and pictures as the denoiser reads them, each encoded once."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps

from cones_registry.attention import find_phrases, subject_rows, unservable_reason
from cones_registry.errors import UsageError

if TYPE_CHECKING:
    from cones_registry.attention import RowChoice
    from cones_registry.base_model import BaseModel

_CHUNK = 16


@dataclass(frozen=True)
class Texts:
    """P distinct prompts, encoded.

    embeddings: [P, T, D], what the denoiser takes as ``encoder_hidden_states``.
    rows: bool [P, T], the rows of the subject's own tokens.
    pooled: [P, E] of models that also read the text as a whole (SDXL), else None.
    """

    embeddings: torch.Tensor
    rows: torch.Tensor
    pooled: torch.Tensor | None = None


def require_learnable(base: BaseModel) -> None:
    """Raise UsageError for a base model that concepts cannot be extracted from, and say why."""
    if base.denoiser_name != "unet":
        raise UsageError(
            f"{base.source!r} has a transformer; concepts are extracted from U-Nets. "
            "Use a Stable Diffusion 1.x, 2.x or XL pipeline"
        )
    reason = unservable_reason(base.denoiser)
    if reason is not None:
        raise UsageError(f"cannot extract from {base.source!r}: {reason}")


def check_token(base: BaseModel, token: str) -> None:
    """Raise UsageError unless every tokenizer of ``base`` has ``token`` as one entry of its own.

    A token in several pieces shares them with ordinary words, so a mask on its rows would be
    learnt for the pieces, and words that hold them would look like the subject to the text encoder.
    """
    if not token.strip() or token != token.strip() or len(token.split()) != 1:
        raise UsageError(f"token {token!r} is not one word. Take a rare one, such as 'sks'")
    with base.lock:
        for tokenizer in base.tokenizers:
            pieces = tokenizer.tokenize(token)
            # Special tokens include the one for unknown words.
            if len(pieces) == 1 and pieces[0] not in tokenizer.all_special_tokens:
                continue
            free = [word for word in _RARE_WORDS if len(tokenizer.tokenize(word)) == 1]
            hint = f"such as {', '.join(map(repr, free[:4]))}" if free else "of its vocabulary"
            raise UsageError(
                f"token {token!r} is no single entry of this model's tokenizer, which reads it as "
                f"{' + '.join(map(repr, pieces)) or 'nothing'}. Take one rare word it knows, {hint}"
            )


_RARE_WORDS = ("sks", "ohwx", "zwp", "qxv", "vbk", "jyq", "kwt", "xgm", "olis", "pll", "ucd")


def encode_texts(
    base: BaseModel,
    prompts: Sequence[str],
    *,
    token: str | None = None,
    class_noun: str = "",
    rows: RowChoice = "phrase",
) -> Texts:
    """Encode prompts; rows of ``token`` (with the noun that follows it) are found where it stands.

    rows: which rows are the subject's own.

    Raises NotFoundError if a prompt names the token past what the text encoder reads.
    """
    pipeline = base.pipeline
    accepted = inspect.signature(pipeline.encode_prompt).parameters
    parts, pooled = [], []
    with base.lock, torch.no_grad():
        for start in range(0, len(prompts), _CHUNK):
            found = pipeline.encode_prompt(
                prompt=list(prompts[start : start + _CHUNK]),
                device=base.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
            parts.append(found[0])
            if "prompt_2" in accepted:  # SDXL: embeddings, negative, pooled, negative pooled
                pooled.append(found[2])
        embeddings = torch.cat(parts)
    own = find_rows(base, prompts, token, class_noun, embeddings.shape[1], rows=rows)
    return Texts(embeddings, own, torch.cat(pooled) if pooled else None)


def find_rows(
    base: BaseModel,
    prompts: Sequence[str],
    token: str | None,
    class_noun: str,
    length: int,
    *,
    rows: RowChoice = "phrase",
) -> torch.Tensor:
    """Rows of ``token`` (with the noun that follows it) in each prompt: bool [P, ``length``].

    Without a token there are none.
    """
    found = torch.zeros(len(prompts), length, dtype=torch.bool)
    if token is None:
        return found
    for number, prompt in enumerate(prompts):
        phrases = find_phrases(prompt, token=token, class_noun=class_noun, required=False)
        found[number] = subject_rows(base, prompt, phrases, choice=rows, length=length)
    return found


def added_conditions(
    base: BaseModel, texts: Texts, which: torch.Tensor, size: int
) -> dict[str, torch.Tensor] | None:
    """What SDXL's U-Net reads besides the text: pooled text and picture size; else None."""
    if texts.pooled is None:
        return None
    pooled = texts.pooled[which]
    times = base.pipeline._get_add_time_ids(
        (size, size),
        (0, 0),
        (size, size),
        dtype=pooled.dtype,
        text_encoder_projection_dim=pooled.shape[-1],
    ).to(pooled.device)
    return {"text_embeds": pooled, "time_ids": times.repeat(len(pooled), 1)}


def picture_size(base: BaseModel) -> int:
    """Width and height in pixels of the model's own square pictures."""
    sample = base.denoiser.config.sample_size
    scale = int(base.pipeline.vae_scale_factor)
    return int(sample if isinstance(sample, int) else sample[0]) * scale


def fitted(image: Image.Image, size: int) -> Image.Image:
    """The largest square from the middle of ``image``, ``size`` pixels on a side, RGB."""
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def encode_pictures(base: BaseModel, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Latents of square RGB pictures of the model's size: [n, C, h, w], scaled to variance 1."""
    vae = base.pipeline.vae
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    parts = []
    with torch.no_grad():
        for start in range(0, len(pictures), _CHUNK):
            chunk = [np.asarray(each, np.float32) for each in pictures[start : start + _CHUNK]]
            pixels = torch.from_numpy(np.stack(chunk)).permute(0, 3, 1, 2) / 127.5 - 1
            encoded = vae.encode(pixels.to(vae.device, vae.dtype))
            # AutoencoderKL gives a distribution, AutoencoderTiny the latents themselves.
            latents = encoded.latent_dist.mode() if "latent_dist" in encoded else encoded.latents
            parts.append((latents.float() - shift) * vae.config.scaling_factor)
    return torch.cat(parts)
