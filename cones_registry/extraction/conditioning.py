"""Text and pictures as the denoiser reads them, each encoded once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps

from cones_registry.attention import find_phrases, subject_rows, unservable_reason
from cones_registry.attention.modules import original
from cones_registry.base_model.stock import own_size
from cones_registry.errors import UsageError
from cones_registry.extraction.stock_call import StockCall, record_call
from cones_registry.families import FAMILIES, Family, family_of

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
    size: pixels of the pictures' sides, which SDXL reads.
    call: everything the denoiser reads, of other families than Stable Diffusion.
    """

    embeddings: torch.Tensor
    rows: torch.Tensor
    pooled: torch.Tensor | None = None
    size: int = 0
    call: StockCall | None = None

    @property
    def mu(self) -> float | None:
        """What the pipeline's scheduler is told of the pictures' size, if anything."""
        return None if self.call is None else self.call.mu

    def predict(
        self,
        base: BaseModel,
        denoiser: Any,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        which: torch.Tensor,
    ) -> torch.Tensor:
        """What ``denoiser`` answers for noisy latents [B, …] and prompts ``which`` int64 [B]."""
        if self.call is not None:
            return self.call.predict(denoiser, noisy, timesteps, which)
        answer: torch.Tensor = denoiser(
            noisy,
            timesteps,
            encoder_hidden_states=self.embeddings[which],
            added_cond_kwargs=_added_conditions(base, self, which),
        ).sample
        return answer


def require_learnable(base: BaseModel) -> None:
    """Raise UsageError for a base model that concepts cannot be extracted from, and say why."""
    family = base_family(base)
    if family is None or not family.learnt:
        learnt = ", ".join(each.name for each in FAMILIES if each.learnt)
        raise UsageError(
            f"{base.source!r} is drawn by {type(base.pipeline).__name__}, which concepts are not "
            f"extracted from. Use one of {learnt}"
        )
    reason = unservable_reason(base.denoiser)
    if reason is not None:
        raise UsageError(f"cannot extract from {base.source!r}: {reason}")


def base_family(base: BaseModel) -> Family | None:
    """The family of a base model, None if its pipeline belongs to none."""
    kind = type(base.pipeline).__name__
    family = family_of(type(original(base.denoiser)).__name__, kind)
    return family if family is not None and kind in family.pipelines else None


def is_stable_diffusion(base: BaseModel) -> bool:
    """Whether prompts are encoded and told as in Stable Diffusion 1, 2 and XL."""
    return type(base.pipeline).__name__ in ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


def check_token(base: BaseModel, token: str) -> None:
    """Raise UsageError unless every tokenizer of ``base`` can read ``token`` as a word of its own.

    For CLIP it must be one entry: a token in several pieces shares them with ordinary words, so a
    mask on its rows would be learnt for the pieces, and words that hold them would look like the
    subject to the text encoder. Larger text encoders read most rare words in pieces and tell them
    apart by their company.
    """
    if not token.strip() or token != token.strip() or len(token.split()) != 1:
        raise UsageError(f"token {token!r} is not one word. Take a rare one, such as 'sks'")
    with base.lock:
        for tokenizer in base.tokenizers:
            if _is_entry(tokenizer, token):
                continue
            pieces = tokenizer.tokenize(token)
            if _is_sentencepiece(tokenizer) and pieces:
                continue  # rare words are several pieces there; rows are found by character
            free = [word for word in RARE_WORDS if _is_entry(tokenizer, word)]
            hint = f"such as {', '.join(map(repr, free[:4]))}" if free else "of its vocabulary"
            raise UsageError(
                f"token {token!r} is no single entry of this model's tokenizer, which reads it as "
                f"{' + '.join(map(repr, pieces)) or 'nothing'}. Take one rare word it knows, "
                f"{hint}, or leave it out"
            )


def _is_sentencepiece(tokenizer: Any) -> bool:
    return "clip" not in type(tokenizer).__name__.lower()


def free_token(base: BaseModel, *, avoid: Collection[str] = ()) -> str:
    """A rare word that ``base`` can learn a subject by, as ``check_token`` has it.

    avoid: words to pass over, as long as there are others.
    Raises UsageError if the tokenizers share no such word.
    """
    taken = {word.casefold() for word in avoid}
    with base.lock:
        strict = [each for each in base.tokenizers if not _is_sentencepiece(each)]
        if not strict:  # they tell words in pieces apart
            return next((word for word in RARE_WORDS if word not in taken), RARE_WORDS[0])
        first, *others = strict
        words = [word for word in RARE_WORDS if _is_entry(first, word)]
        if taken.issuperset(words):
            words += _rare_entries(first)
        words = [word for word in words if all(_is_entry(each, word) for each in others)]
    if not words:
        raise UsageError(
            "this model's tokenizers have no rare word in common. Give the token, a word of their "
            "vocabulary that means nothing"
        )
    return next((word for word in words if word not in taken), words[0])


def _is_entry(tokenizer: Any, word: str) -> bool:
    """Whether a tokenizer has a word as one entry of its own, and not as the unknown one."""
    pieces = tokenizer.tokenize(word)
    return len(pieces) == 1 and pieces[0] not in tokenizer.all_special_tokens


def _rare_entries(tokenizer: Any) -> list[str]:
    """Short entries that can hardly be words, having no vowel; those that came last first."""
    numbered = sorted(tokenizer.get_vocab().items(), key=lambda entry: -entry[1])
    words = (piece.removesuffix("</w>").lstrip("▁Ġ") for piece, _ in numbered)
    rare = (word for word in words if _CONSONANTS.fullmatch(word))
    return [word for word in rare if _is_entry(tokenizer, word)]


_CONSONANTS = re.compile(r"[bcdfghjklmnpqrstvwxz]{3,4}")
RARE_WORDS = ("sks", "ohwx", "zwp", "qxv", "vbk", "jyq", "kwt", "xgm", "olis", "pll", "ucd")


def encode_texts(
    base: BaseModel,
    prompts: Sequence[str],
    *,
    token: str | None = None,
    class_noun: str = "",
    rows: RowChoice = "phrase",
    size: int | None = None,
) -> Texts:
    """Encode prompts; rows of ``token`` (with the noun that follows it) are found where it stands.

    rows: which rows are the subject's own. size: pixels of the pictures' sides; None: the model's.

    Raises NotFoundError if a prompt names the token past what the text encoder reads.
    """
    size = size or picture_size(base)
    if not is_stable_diffusion(base):
        call = record_call(base, prompts, size)
        own = find_rows(base, prompts, token, class_noun, call.row_count, rows=rows)
        return Texts(call.embeddings, own, size=size, call=call)
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
    return Texts(embeddings, own, torch.cat(pooled) if pooled else None, size)


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


def _added_conditions(
    base: BaseModel, texts: Texts, which: torch.Tensor
) -> dict[str, torch.Tensor] | None:
    """What SDXL's U-Net reads besides the text: pooled text and picture size; else None."""
    if texts.pooled is None:
        return None
    pooled = texts.pooled[which]
    times = base.pipeline._get_add_time_ids(
        (texts.size, texts.size),
        (0, 0),
        (texts.size, texts.size),
        dtype=pooled.dtype,
        text_encoder_projection_dim=pooled.shape[-1],
    ).to(pooled.device)
    return {"text_embeds": pooled, "time_ids": times.repeat(len(pooled), 1)}


def picture_size(base: BaseModel) -> int:
    """Width and height in pixels of the model's own square pictures."""
    return own_size(base.pipeline)


def fitted(image: Image.Image, size: int) -> Image.Image:
    """The largest square from the middle of ``image``, ``size`` pixels on a side, RGB."""
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def encode_pictures(base: BaseModel, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Latents of square RGB pictures of one size: [n, C, h, w], scaled to variance 1."""
    vae = base.pipeline.vae
    parts = []
    with torch.no_grad():
        for start in range(0, len(pictures), _CHUNK):
            chunk = [np.asarray(each, np.float32) for each in pictures[start : start + _CHUNK]]
            pixels = torch.from_numpy(np.stack(chunk)).permute(0, 3, 1, 2) / 127.5 - 1
            parts.append(_latents(vae, pixels.to(vae.device, vae.dtype)))
    return torch.cat(parts)


def _latents(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    means, deviations = _of_channels(vae, "latents_mean"), _of_channels(vae, "latents_std")
    if means is not None and deviations is not None:  # of videos: one frame
        frames: torch.Tensor = vae.encode(pixels.unsqueeze(2)).latent_dist.mode()
        factor = float(getattr(vae.config, "scaling_factor", None) or 1.0)
        return (frames[:, :, 0].float() - means) * factor / deviations
    encoded = vae.encode(pixels)
    # AutoencoderKL gives a distribution, AutoencoderTiny and AutoencoderDC the latents themselves.
    if "latent_dist" in encoded:
        latents = encoded.latent_dist.mode()
    else:
        latents = encoded.latents if "latents" in encoded else encoded.latent
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    scaled: torch.Tensor = (latents.float() - shift) * vae.config.scaling_factor
    return scaled


def _of_channels(vae: Any, name: str) -> torch.Tensor | None:
    """A number for each channel of the latents, [1, C, 1, 1]: in its configuration or a buffer."""
    values = getattr(vae.config, name, None)
    if values is None:
        values = dict(vae.named_buffers(recurse=False)).get(name)
    if values is None:
        return None
    return torch.as_tensor(values, dtype=torch.float32, device=vae.device).view(1, -1, 1, 1)
