"""The drawn world's classifier: reads a picture back as a scene, and compares it with a caption.

Trained on rendered pictures alone, made worse as generated ones are (``tools/train_judge.py``),
never on a generated picture, so it is independent of the base model whose pictures it judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from cones_registry.demo.drawn_world.pictures import SIZE, SLOT
from cones_registry.demo.drawn_world.scenes import (
    BACKGROUNDS,
    DRAWINGS,
    NOUNS,
    PLACES,
    TINTS,
    Scene,
    Telling,
    Thing,
)

WEIGHTS: Final = Path(__file__).with_name("judge.safetensors")
HEADS: Final = {"noun": len(NOUNS), "drawing": len(DRAWINGS), "tint": len(TINTS)}


class JudgeNetwork(nn.Module):
    """Two small networks: one reads scene and taken places, one reads what stands at a place."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Sequential(
            *_halving(3, (24, 48, 64)), nn.Flatten(), nn.Linear(64 * 64, 64), nn.SiLU()
        )
        self.background = nn.Linear(64, len(BACKGROUNDS))
        self.taken = nn.Linear(64, len(PLACES))
        self.window = nn.Sequential(
            *_halving(3, (32, 64, 96)), nn.Flatten(), nn.Linear(96 * 16, 128), nn.SiLU()
        )
        self.heads = nn.ModuleDict({name: nn.Linear(128, size) for name, size in HEADS.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """``float32 [n, 3, 64, 64]`` in [-1, 1] -> logits.

        ``background`` is ``[n, 5]``, ``taken`` ``[n, 7]``; what stands at each of the 7 places is
        ``[n, 7, classes]`` under ``noun``, ``drawing`` and ``tint``.
        """
        whole = self.whole(pictures)
        windows = torch.stack(
            [pictures[:, :, y : y + SLOT, x : x + SLOT] for x, y, _ in PLACES.values()], 1
        )
        features = self.window(windows.flatten(0, 1))
        found = {
            name: head(features).view(len(pictures), len(PLACES), -1)
            for name, head in self.heads.items()
        }
        return {**found, "background": self.background(whole), "taken": self.taken(whole)}


def _halving(channels: int, widths: Sequence[int]) -> list[nn.Module]:
    """Convolutions of stride 2, each halving the side."""
    modules: list[nn.Module] = []
    for width in widths:
        modules += [nn.Conv2d(channels, width, 3, 2, 1), nn.GroupNorm(4, width), nn.SiLU()]
        channels = width
    return modules


class Judge:
    """Reads pictures as scenes.

    Example: ``Judge.load().read([picture])[0].things`` -> ``(("left", Thing("cat", …)),)``
    """

    def __init__(self, network: JudgeNetwork) -> None:
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Judge:
        """The shipped judge."""
        network = JudgeNetwork()
        network.load_state_dict(load_file(path))
        return cls(network)

    def read(self, pictures: Sequence[Image.Image]) -> list[Scene]:
        """The scene each picture shows; things in the order of ``scenes.PLACES``."""
        read: list[Scene] = []
        for at in range(0, len(pictures), 64):
            read += self.read_tensor(pictures_to_tensor(pictures[at : at + 64]))
        return read

    def read_tensor(self, pictures: Tensor) -> list[Scene]:
        """The same for ``float32 [n, 3, 64, 64]`` in [-1, 1]."""
        logits = self.network(pictures)
        taken = (logits["taken"] > 0).numpy()
        grounds = logits["background"].argmax(-1).tolist()
        noun, drawing, tint = (logits[name].argmax(-1).numpy() for name in HEADS)
        scenes = []
        for number in range(len(pictures)):
            things = tuple(
                (
                    place,
                    Thing(
                        NOUNS[noun[number, at]],
                        tuple(DRAWINGS)[drawing[number, at]],
                        tuple(TINTS)[tint[number, at]],
                    ),
                )
                for at, place in enumerate(PLACES)
                if taken[number, at]
            )
            scenes.append(Scene(tuple(BACKGROUNDS)[grounds[number]], things))
        return scenes


def pictures_to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """``float32 [n, 3, 64, 64]`` in [-1, 1]; other sizes are resized."""
    arrays = [
        np.asarray(picture.convert("RGB").resize((SIZE, SIZE)), np.float32) for picture in pictures
    ]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).div(127.5).sub(1)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares in [0, 1] of what captions asked for.

    Attributes:
        noun: of things: the noun is at its place; anywhere, if the caption names no places.
        tint: of things whose tint was said.
        drawing: of things whose drawing was said.
        thing: of things: everything said of it.
        place: of pictures: exactly the places asked for are taken; as many, if none is named.
        background: of pictures whose scene was said.
        whole: of pictures: everything that was said.
    """

    noun: float
    tint: float
    drawing: float
    thing: float
    place: float
    background: float
    whole: float


def accuracy(
    asked: Sequence[Scene], tellings: Sequence[Telling], seen: Sequence[Scene]
) -> Accuracy:
    """Compare what was asked for with what the judge saw; NaN where nothing was said of a kind."""
    hits: dict[str, list[bool]] = {
        name: [] for name in ("noun", "tint", "drawing", "thing", "place", "background", "whole")
    }
    for wanted, telling, found in zip(asked, tellings, seen, strict=True):
        right: list[bool] = []
        rest = list(found.things)
        for number, (place, thing) in enumerate(wanted.things):
            match = _match(place if telling.places else None, thing, rest)
            if match is not None:
                rest.remove(match)
            there = match[1] if match else None
            said = {"noun": bool(there and there.noun == thing.noun)}
            if telling.tints[number] and thing.tint != "natural":
                said["tint"] = bool(there and there.tint == thing.tint)
            if telling.drawings[number]:
                said["drawing"] = bool(there and there.drawing == thing.drawing)
            for name, hit in said.items():
                hits[name].append(hit)
            hits["thing"].append(all(said.values()))
            right.append(all(said.values()))
        if telling.places:
            placed = {place for place, _ in found.things} == {place for place, _ in wanted.things}
        else:
            placed = len(found.things) == len(wanted.things)
        hits["place"].append(placed)
        if telling.background:
            hits["background"].append(found.background == wanted.background)
        behind = not telling.background or found.background == wanted.background
        hits["whole"].append(all(right) and placed and behind)
    return Accuracy(
        **{name: float(np.mean(found)) if found else float("nan") for name, found in hits.items()}
    )


def _match(
    place: str | None, thing: Thing, rest: Sequence[tuple[str, Thing]]
) -> tuple[str, Thing] | None:
    """What stands at ``place``; for None, the thing most like ``thing``, if its noun is there."""
    if place is not None:
        return next((found for found in rest if found[0] == place), None)
    same = [found for found in rest if found[1].noun == thing.noun]
    return max(
        same,
        key=lambda found: (found[1].tint == thing.tint) + (found[1].drawing == thing.drawing),
        default=None,
    )
