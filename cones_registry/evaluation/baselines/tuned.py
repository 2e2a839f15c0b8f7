"""Tuned: a base model after a baseline, and what a user of that method would keep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cones_registry.digest import quote
from cones_registry.errors import BaseModelMismatchError, CorruptDataError, UsageError
from cones_registry.evaluation.baselines.method import BASELINES, Baseline
from cones_registry.evaluation.baselines.private_model import private_copy, settled

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel

_METADATA = "cones_baseline"


@dataclass(frozen=True, eq=False)
class Tuned:
    """What a baseline came to.

    method: its name. base: a model of its own, in no cache; ``Generator(tuned.base)`` draws with
    it, and prompts name the subjects as ever.
    words: token and class noun of each subject.
    kept: what a user keeps, by name, float32.
    parameters: settings, as JSON values. history: the loss curve. seconds: training time.
    """

    method: str
    base: BaseModel
    words: tuple[tuple[str, str], ...]
    kept: Mapping[str, torch.Tensor] = field(repr=False)
    parameters: Mapping[str, Any] = field(default_factory=dict, repr=False)
    history: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    seconds: float = 0.0

    @property
    def stored_bytes(self) -> int:
        """Bytes of what a user keeps, uncompressed."""
        return sum(each.numel() * each.element_size() for each in self.kept.values())

    def save(self, file: str | Path) -> None:
        """Keep it as a safetensors file; see ``load_tuned``."""
        from safetensors.torch import save_file

        record = {
            "method": self.method,
            "words": self.words,
            "parameters": dict(self.parameters),
            "history": [dict(entry) for entry in self.history],
            "seconds": self.seconds,
        }
        save_file(dict(self.kept), file, metadata={_METADATA: json.dumps(record)})


def load_tuned(file: str | Path, base: BaseModel) -> Tuned:
    """Read what ``Tuned.save`` wrote; ``base`` is the model it was trained from.

    Raises CorruptDataError for another file, BaseModelMismatchError for another base model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            record = json.loads((opened.metadata() or {})[_METADATA])
            kept = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        words = tuple((token, noun) for token, noun in record["words"])
        method, parameters = record["method"], record["parameters"]
        history, seconds = tuple(record["history"]), float(record["seconds"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise CorruptDataError(
            f"{file} is no file of a trained baseline: {error!r}. Train it again"
        ) from error
    model = restore(baseline(method), base, words, kept)
    return Tuned(method, model, words, kept, parameters, history, seconds)


def combine(base: BaseModel, parts: Sequence[Tuned]) -> Tuned:
    """Subjects learnt apart, together, by a method whose results add up: Textual Inversion.

    Raises UsageError for other methods, which have to be trained on all subjects jointly.
    """
    if not parts:
        raise UsageError("nothing to combine. Expected at least one trained baseline")
    if any(part.method != "textual-inversion" for part in parts):
        raise UsageError(
            f"{', '.join(sorted({part.method for part in parts}))}: only the tokens of Textual "
            "Inversion can be put together after training. Train the others on all subjects at once"
        )
    words = tuple(pair for part in parts for pair in part.words)
    kept = {name: value for part in parts for name, value in part.kept.items()}
    if len({token for token, _ in words}) < len(words):
        raise UsageError("two of the subjects have one token. Train one with another")
    model = restore(BASELINES["textual-inversion"], base, words, kept)
    return Tuned(
        "textual-inversion",
        model,
        words,
        kept,
        {"parts": [dict(part.parameters) for part in parts]},
        seconds=sum(part.seconds for part in parts),
    )


def restore(
    method: Baseline,
    base: BaseModel,
    words: Sequence[tuple[str, str]],
    kept: Mapping[str, torch.Tensor],
) -> BaseModel:
    """A model of one's own with what was kept put in place."""
    model = private_copy(base, denoiser=method.denoiser, text=method.text)
    trainable = method.attach(model, words)
    expected = {name: tuple(value.shape) for name, value in trainable.parameters.items()}
    if expected != {name: tuple(value.shape) for name, value in kept.items()}:
        raise BaseModelMismatchError(
            f"what {method.title} kept does not fit {base.source!r}. Load the base model it was "
            "trained from"
        )
    with torch.no_grad():
        for name, parameter in trainable.parameters.items():
            parameter.copy_(kept[name])
    trainable.settle()
    return settled(base, model, method.title)


def baseline(method: str) -> Baseline:
    """The baseline of this name, or UsageError."""
    if method not in BASELINES:
        raise UsageError(
            f"unknown baseline {quote(method)}. Expected one of {', '.join(BASELINES)}"
        )
    return BASELINES[method]
