"""Whether what a pipeline has drawn is a picture: no NaN on the way, nothing blacked out.

A stock pipeline whose numbers overflow, and one whose safety checker fires, give black pictures and
no error.
"""

from __future__ import annotations

import time
from typing import Any

import torch


class WatchedAutoencoder:
    """An autoencoder that remembers which pictures of its last call were finite numbers.

    A pipeline uses it in the place of its own. Pictures that were none come out as zeros.

    Attributes:
        latents: whether the latents of each picture were finite, bool [B]; empty before a call.
        pixels: the same of what was decoded from them.
        seconds: that decoding took in all calls.
    """

    def __init__(self, autoencoder: Any) -> None:
        self._autoencoder = autoencoder
        self.latents: list[bool] = []
        self.pixels: list[bool] = []
        self.seconds = 0.0

    def decode(self, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The autoencoder's own answer, without NaN and infinity."""
        began = time.perf_counter()
        self.latents = _finite(latents)
        decoded = self._autoencoder.decode(latents, *args, **kwargs)
        sample = decoded[0] if isinstance(decoded, tuple) else decoded.sample
        self.pixels = _finite(sample)
        self.seconds += time.perf_counter() - began
        if all(self.pixels):
            return decoded
        sample = torch.nan_to_num(sample, nan=0.0, posinf=0.0, neginf=0.0)
        return (sample, *decoded[1:]) if isinstance(decoded, tuple) else type(decoded)(sample)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._autoencoder, name)


def failures(
    watched: WatchedAutoencoder | None, output: Any, count: int, *, dtype: torch.dtype
) -> dict[int, str]:
    """Number of a picture -> why it is none, for the ``count`` pictures of one call.

    watched: what stood in the place of the autoencoder; None for a pipeline without.
    output: what the pipeline gave back. dtype: of the denoiser.
    """
    found: dict[int, str] = {}
    flagged = _each(getattr(output, "nsfw_content_detected", None), count, default=False)
    pixels = _each(watched.pixels if watched else None, count, default=True)
    latents = _each(watched.latents if watched else None, count, default=True)
    for number in range(count):
        if not latents[number]:
            found[number] = (
                f"its numbers became NaN or infinite on the way, in {_name(dtype)}: there is no "
                f"picture. {_advice(dtype)}"
            )
        elif not pixels[number]:
            found[number] = (
                f"the autoencoder's numbers became NaN or infinite, in {_name(dtype)}: there is no "
                f'picture. {_advice(dtype)}, or set "force_upcast": true in vae/config.json'
            )
        elif flagged[number]:
            found[number] = (
                "the base model's safety checker took it for unsafe and blacked it out. Give "
                "another prompt or seed"
            )
    return found


def _finite(values: torch.Tensor) -> list[bool]:
    """Whether all numbers of each picture are finite: values [B, …] -> bool [B]."""
    finite: list[bool] = torch.isfinite(values).flatten(1).all(dim=1).tolist()
    return finite


def _each(said: Any, count: int, *, default: bool) -> list[bool]:
    """One answer per picture; where there are fewer or more, the worst stands for all."""
    if not said:
        return [default] * count
    if len(said) == count:
        return [bool(each) for each in said]
    return [all(map(bool, said)) if default else any(map(bool, said))] * count


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _advice(dtype: torch.dtype) -> str:
    if dtype == torch.float32:
        return "Look the base model over (cones doctor --base), or lower the guidance"
    return "Draw with --dtype float32, or bfloat16 on a GPU"
