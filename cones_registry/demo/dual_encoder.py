"""The demo world's own CLIP and DINO: pictures and captions as vectors.

Trained on the renderer alone (`tools/train_demo_dual_encoder.py`), never on a generated picture.
A caption lies near the pictures it is true of, also when it says only part of what they show. In
a second space, of pictures alone, a picture of one thing lies near pictures in which it stands
anywhere, among others and on any background.
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

from cones_registry.demo.judge import pictures_to_tensor
from cones_registry.demo.world import PLACEHOLDERS, WORDS

WEIGHTS = Path(__file__).with_name("dual_encoder.safetensors")
WIDTH = 128  # of the common space
LENGTH = 40  # words read of a caption
VOCABULARY = {word: at + 1 for at, word in enumerate(w for w in WORDS if w not in PLACEHOLDERS)}
_CHUNK = 128


class DualEncoderNetwork(nn.Module):
    """Convolutions for pictures, two transformer layers for captions."""

    def __init__(self, text_width: int = 96) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        channels = 3
        for width in (32, 64, 96):
            stages += [nn.Conv2d(channels, width, 3, 2, 1), nn.GroupNorm(4, width), nn.SiLU()]
            channels = width
        self.trunk = nn.Sequential(*stages, nn.Flatten(), nn.Linear(96 * 16, 256), nn.SiLU())
        self.picture = nn.Linear(256, WIDTH)
        self.likeness = nn.Linear(256, WIDTH)
        self.words = nn.Embedding(len(VOCABULARY) + 1, text_width, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(LENGTH, text_width) * 0.1)
        layer = nn.TransformerEncoderLayer(
            text_width, 4, 2 * text_width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.reader = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.text = nn.Linear(text_width, WIDTH)
        # Of the sigmoid loss, for captions and for likeness: log of the scale, and the bias.
        self.scale = nn.Parameter(torch.tensor([2.3, 2.3]))
        self.bias = nn.Parameter(torch.tensor([-5.0, -5.0]))

    def encode_pictures(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [n, 3, 32, 32] in [-1, 1] -> unit vectors [n, 128] beside captions, and alone."""
        states = self.trunk(pictures)
        return (
            nn.functional.normalize(self.picture(states), dim=-1),
            nn.functional.normalize(self.likeness(states), dim=-1),
        )

    def encode_words(self, numbers: Tensor) -> Tensor:
        """int64 [n, 40], 0 past the end -> unit vectors [n, 128]."""
        padding = numbers == 0
        states = self.reader(self.words(numbers) + self.positions, src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(-1)
        mean = (states * kept).sum(1) / kept.sum(1).clamp(min=1)
        return nn.functional.normalize(self.text(mean), dim=-1)


def word_numbers(captions: Sequence[str]) -> Tensor:
    """int64 [n, 40]; words the world does not know are left out, as are placeholders."""
    numbers = torch.zeros(len(captions), LENGTH, dtype=torch.int64)
    for row, caption in enumerate(captions):
        known = [VOCABULARY[word] for word in caption.lower().split() if word in VOCABULARY]
        known = known[:LENGTH]
        numbers[row, : len(known)] = torch.tensor(known, dtype=torch.int64)
    return numbers


class DualEncoder:
    """Pictures and captions to unit vectors, float32 [n, 128]."""

    def __init__(self, network: DualEncoderNetwork) -> None:
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> DualEncoder:
        """The shipped encoder."""
        network = DualEncoderNetwork()
        network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
        return cls(network)

    def pictures(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Unit vectors beside captions; other sizes than 32 x 32 are resized."""
        return self._encoded(pictures)[0]

    def likenesses(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Unit vectors of pictures alone, for what stands in them."""
        return self._encoded(pictures)[1]

    def _encoded(self, pictures: Sequence[Image.Image]) -> list[NDArray[np.float32]]:
        """Both kinds, float32 [n, 128] each."""
        parts = [
            torch.stack(self.network.encode_pictures(pictures_to_tensor(chunk)))
            for chunk in (pictures[at : at + _CHUNK] for at in range(0, len(pictures), _CHUNK))
        ]
        found = torch.cat(parts, 1) if parts else torch.empty(2, 0, WIDTH)
        return [np.asarray(kind.numpy(), np.float32) for kind in found]

    def texts(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of captions."""
        found: NDArray[np.float32] = self.network.encode_words(word_numbers(captions)).numpy()
        return found
