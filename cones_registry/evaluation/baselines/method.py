"""The four baselines: what each trains, from where, and the settings that did best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from cones_registry.evaluation.baselines.low_rank import attach_low_rank
from cones_registry.evaluation.baselines.token_rows import TokenRows

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel

Words = Sequence[tuple[str, str]]
"""Token and class noun of each subject."""


@dataclass(frozen=True)
class Trainable:
    """What a baseline trains.

    parameters: by name; also what a user keeps. settle: folds them into the model's own weights.
    """

    parameters: Mapping[str, torch.nn.Parameter]
    settle: Callable[[], None]


@dataclass(frozen=True)
class Baseline:
    """One method and the settings it is trained with unless told otherwise.

    title: as in tables. source: the paper. denoiser, text: whether it trains weights of the
        denoiser, and the embedding of the token.
    learning_rate: AdamW's, falling by a cosine to a tenth. steps: for each subject.
    prior_weight: of class pictures. attach: makes a private model trainable.
    """

    name: str
    title: str
    source: str
    denoiser: bool
    text: bool
    learning_rate: float
    steps: int
    prior_weight: float
    attach: Callable[[BaseModel, Words], Trainable]


def _textual_inversion(model: BaseModel, words: Words) -> Trainable:
    rows = TokenRows(model, words, start_at_noun=True)
    return Trainable(rows.parameters, rows.settle)


def _dreambooth(model: BaseModel, _words: Words) -> Trainable:
    return Trainable(dict(model.denoiser.named_parameters()), _nothing)


def _custom_diffusion(model: BaseModel, words: Words) -> Trainable:
    rows = TokenRows(model, words, start_at_noun=False)
    weights = {name: model.denoiser.get_parameter(name) for name in model.layer_table.names}
    return Trainable({**weights, **rows.parameters}, rows.settle)


def _lora(model: BaseModel, _words: Words) -> Trainable:
    return Trainable(*attach_low_rank(model.denoiser))


def _nothing() -> None:
    """The weights were trained where they are."""


BASELINES: Final[Mapping[str, Baseline]] = {
    each.name: each
    for each in (
        Baseline(
            "textual-inversion",
            "Textual Inversion",
            "arXiv 2208.01618",
            denoiser=False,
            text=True,
            learning_rate=1e-1,
            steps=300,
            prior_weight=0.0,
            attach=_textual_inversion,
        ),
        Baseline(
            "dreambooth",
            "DreamBooth",
            "arXiv 2208.12242",
            denoiser=True,
            text=False,
            learning_rate=3e-4,
            steps=300,
            prior_weight=1.0,
            attach=_dreambooth,
        ),
        Baseline(
            "custom-diffusion",
            "Custom Diffusion",
            "arXiv 2212.04488",
            denoiser=True,
            text=True,
            learning_rate=1e-3,
            steps=300,
            prior_weight=1.0,
            attach=_custom_diffusion,
        ),
        Baseline(
            "lora",
            "LoRA, rank 4",
            "arXiv 2106.09685",
            denoiser=True,
            text=False,
            learning_rate=3e-3,
            steps=300,
            prior_weight=1.0,
            attach=_lora,
        ),
    )
}
"""By name. The learning rates did best in tools/results/baselines.md; all get the same steps."""
