"""The demo world's own classifier: reads a picture back as a scene.

Trained on the renderer alone (`tools/train_demo_judge.py`), never on a generated picture, so
it is independent of the base model whose pictures it judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from cones_registry.demo.world import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    SHAPES,
    SIZE,
    TEXTURES,
    Scene,
    Thing,
)

WEIGHTS = Path(__file__).with_name("judge.safetensors")
CROP = 16  # pixels on a side of the window around a place
HEADS = {
    "present": 2,
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "texture": len(TEXTURES),
    "second": len(COLOURS),
}


class JudgeNetwork(nn.Module):
    """Two small networks: one for what stands in a window, one for the background."""

    def __init__(self) -> None:
        super().__init__()
        self.window = nn.Sequential(*_stack(3, (32, 64)), nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(64 * 4 * 4, 128), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(128, size) for name, size in HEADS.items()})
        self.ground = nn.Sequential(
            nn.AvgPool2d(2),
            *_stack(3, (16, 32)),
            nn.Flatten(),
            nn.Linear(32 * 16, len(BACKGROUNDS)),
        )

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """float32 [n, 3, 32, 32] in [-1, 1] -> logits [n, 5 places, classes] and [n, grounds]."""
        padded = nn.functional.pad(pictures, (2, 2, 2, 2), mode="replicate")
        corners = [(round(y) + 2 - CROP // 2, round(x) + 2 - CROP // 2) for x, y in PLACES.values()]
        windows = torch.stack(
            [padded[:, :, top : top + CROP, left : left + CROP] for top, left in corners], 1
        )
        features = self.hidden(self.window(windows.flatten(0, 1)))
        found = {
            name: head(features).view(len(pictures), len(PLACES), -1)
            for name, head in self.heads.items()
        }
        return {**found, "background": self.ground(pictures)}


def _stack(channels: int, widths: Sequence[int]) -> list[nn.Module]:
    """Stride-2 convolutions, each halving the side."""
    modules: list[nn.Module] = []
    for width in widths:
        modules += [nn.Conv2d(channels, width, 3, 2, 1), nn.GroupNorm(4, width), nn.SiLU()]
        channels = width
    return modules


class Judge:
    """Reads pictures as scenes.

    Example: ``Judge.load().read([picture])[0].things`` -> ``(("left", Thing("circle", "red")),)``
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
        """The scene each picture shows; things in the order of ``world.PLACES``."""
        scenes = []
        for at in range(0, len(pictures), 64):
            scenes += self._read(pictures_to_tensor(pictures[at : at + 64]))
        return scenes

    def _read(self, pictures: Tensor) -> list[Scene]:
        found = {name: logits.argmax(-1).numpy() for name, logits in self.network(pictures).items()}
        return [self._scene(found, number) for number in range(len(pictures))]

    def _scene(self, found: dict[str, NDArray[np.int64]], number: int) -> Scene:
        colours = list(COLOURS)
        things = []
        for at, place in enumerate(PLACES):
            if not found["present"][number, at]:
                continue
            texture = TEXTURES[found["texture"][number, at]]
            things.append(
                (
                    place,
                    Thing(
                        SHAPES[found["shape"][number, at]],
                        colours[found["colour"][number, at]],
                        texture,
                        None if texture == "plain" else colours[found["second"][number, at]],
                    ),
                )
            )
        return Scene(list(BACKGROUNDS)[found["background"][number]], tuple(things))


def pictures_to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """float32 [n, 3, 32, 32] in [-1, 1]; other sizes are resized."""
    arrays = [
        np.asarray(picture.convert("RGB").resize((SIZE, SIZE)), np.float32) for picture in pictures
    ]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).div(127.5).sub(1)


def accuracy(asked: Sequence[Scene], seen: Sequence[Scene]) -> dict[str, float]:
    """Shares in [0, 1] over the things asked for: shape, colour, texture, place, background.

    ``place`` is right when exactly the places asked for are taken. ``all`` is the share of
    pictures in which every thing is right in everything and stands where it should.
    """
    counts = {"shape": 0, "colour": 0, "texture": 0, "thing": 0}
    total = 0
    place = background = whole = 0
    for wanted, got in zip(asked, seen, strict=True):
        there = dict(got.things)
        total += len(wanted.things)
        for where, thing in wanted.things:
            found = there.get(where)
            if found is None:
                continue
            counts["shape"] += found.shape == thing.shape
            counts["colour"] += found.colour == thing.colour
            counts["texture"] += (found.texture, found.second) == (thing.texture, thing.second)
            counts["thing"] += found == thing
        place += set(there) == {where for where, _ in wanted.things}
        background += got.background == wanted.background
        whole += all(there.get(where) == thing for where, thing in wanted.things)
    shares = {name: count / total for name, count in counts.items()}
    pictures = len(asked)
    return {
        **shares,
        "place": place / pictures,
        "background": background / pictures,
        "all": whole / pictures,
    }
