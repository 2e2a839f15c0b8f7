"""The one trainer of all baselines: the loss, batches and noise schedule of ``Extractor``."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cones_registry.errors import UsageError
from cones_registry.evaluation.baselines.method import Trainable
from cones_registry.evaluation.baselines.private_model import private_copy, settled
from cones_registry.evaluation.baselines.tuned import Tuned, baseline, restore
from cones_registry.extraction.batches import Batches, Draw
from cones_registry.extraction.conditioning import is_stable_diffusion, require_learnable
from cones_registry.extraction.loss import DivergedError, denoising_losses
from cones_registry.extraction.methods import Curve
from cones_registry.extraction.noise import NoiseSchedule
from cones_registry.extraction.prior import default_cache_folder
from cones_registry.extraction.progress import Progress, reporting
from cones_registry.extraction.settings import ExtractionSettings
from cones_registry.extraction.subject_images import SubjectImages, gather_all

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel

BATCH_SIZE = 8
"""Pictures of subjects a step, as for gates; half as many class pictures come on top."""
LAST_RATE = 0.1
"""Share of the learning rate that is left at the last step."""


def train(
    method: str,
    base: BaseModel,
    subjects: Sequence[SubjectImages],
    *,
    steps: int | None = None,
    learning_rate: float | None = None,
    prior_weight: float | None = None,
    batch_size: int = BATCH_SIZE,
    together: bool = True,
    seed: int = 0,
    settings: ExtractionSettings | None = None,
    cache_folder: str | Path | None = None,
    at: Sequence[int] = (),
    on_tuned: Callable[[int, Tuned], None] | None = None,
    progress: Progress = None,
) -> Tuned:
    """Train a baseline on one subject or on several jointly; ``base`` stays as it is.

    method: "textual-inversion", "dreambooth", "custom-diffusion" or "lora".
    steps: for each subject. learning_rate, prior_weight: as steps, by default the method's own.
    together: pictures of the other subjects are also used as companions.
    at, on_tuned: ``on_tuned(step, tuned)`` after these steps, counted over all subjects.
    settings, progress: as for ``Extractor.extract``.

    Deterministic by ``seed`` on one machine. Raises UsageError (method, words, options), what
    reading pictures raises, DivergedError.
    """
    recipe = baseline(method)
    steps = (recipe.steps if steps is None else steps) * max(len(subjects), 1)
    rate = recipe.learning_rate if learning_rate is None else learning_rate
    prior = recipe.prior_weight if prior_weight is None else prior_weight
    if steps < 1 or batch_size < 1 or not 0 < rate < math.inf:
        raise UsageError(
            f"steps={steps}, batch_size={batch_size}, learning_rate={rate}; expected at least one "
            "step, one picture, and a rate above 0"
        )
    require_learnable(base)
    if not is_stable_diffusion(base):
        raise UsageError(
            f"{base.source!r} is drawn by {type(base.pipeline).__name__}; the methods to compare "
            "with are trained on Stable Diffusion 1.x, 2.x and XL alone"
        )
    materials = gather_all(base, subjects)
    settings = replace(settings or ExtractionSettings(), prior_weight=prior)
    began = time.monotonic()
    schedule = NoiseSchedule.of(base.pipeline.scheduler)
    model = private_copy(base, denoiser=recipe.denoiser, text=recipe.text)
    batches = Batches.gather(
        model,
        schedule,
        materials,
        settings=settings,
        weighed=settings.for_scope("prompt"),
        batch_size=batch_size,
        seed=seed,
        cache_folder=Path(cache_folder) if cache_folder else default_cache_folder(),
        together=together,
    )
    words = tuple((each.token, each.class_noun) for each in materials)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # PEFT draws the first matrices from the global generator
        trainable = recipe.attach(model, words)
    parameters: dict[str, Any] = {
        "steps": steps,
        "learning_rate": rate,
        "batch_size": batch_size,
        "together": together,
        "seed": seed,
        **asdict(settings),
        **batches.counts,
    }

    apart = 0.0  # seconds spent in on_tuned, which is not training

    def tuned(own: BaseModel, kept: dict[str, torch.Tensor], curve: Curve) -> Tuned:
        spent = time.monotonic() - began - apart
        return Tuned(method, own, words, kept, parameters, tuple(curve.history), spent)

    with reporting(progress, recipe.title) as on_step:
        curve = Curve(steps, on_step)
        descent = _Descent(model, schedule, trainable, steps, rate, text=recipe.text)
        for number in range(1, steps + 1):
            curve.add(number, descent.step(batches.next(), number))
            if on_tuned is not None and number in at:
                kept = _kept(trainable)
                left = time.monotonic()
                on_tuned(number, tuned(restore(recipe, base, words, kept), kept, curve))
                apart += time.monotonic() - left
    kept = _kept(trainable)
    trainable.settle()
    return tuned(settled(base, model, recipe.title), kept, curve)


class _Descent:
    """AdamW on what a baseline trains."""

    def __init__(
        self,
        model: BaseModel,
        schedule: NoiseSchedule,
        trainable: Trainable,
        steps: int,
        rate: float,
        *,
        text: bool,
    ) -> None:
        self._model, self._schedule, self._text = model, schedule, text
        self._steps, self._rate = steps, rate
        self._parameters = list(trainable.parameters.values())
        for parameter in self._parameters:
            parameter.requires_grad_()
        self._optimizer = torch.optim.AdamW(self._parameters, lr=rate)

    def step(self, draws: Sequence[tuple[float, Draw]], number: int) -> float:
        """One step on one batch; its loss before the step."""
        part = (number - 1) / max(self._steps - 1, 1)
        wave = 0.5 * (1 + math.cos(math.pi * part))
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * (LAST_RATE + (1 - LAST_RATE) * wave)
        losses = []
        for weight, draw in draws:
            told = _told(self._model, draw) if self._text else draw
            losses.append(weight * denoising_losses(self._model, self._schedule, told, None).mean())
        loss = torch.stack(losses).sum()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(
                f"the loss is {value} at step {number}. Use a smaller learning_rate"
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        return value


def _told(model: BaseModel, draw: Draw) -> Draw:
    """The draw with its prompts encoded anew, differentiable in the token rows."""
    texts = draw.bank.texts
    which = torch.unique(draw.prompts)
    found = model.pipeline.encode_prompt(
        prompt=[draw.bank.prompts[int(number)] for number in which],
        device=model.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
    )
    index = which.to(model.device)
    embeddings = texts.embeddings.index_copy(0, index, found[0])
    pooled = texts.pooled
    if pooled is not None:
        pooled = pooled.index_copy(0, index, found[2])
    bank = copy.copy(draw.bank)
    bank.texts = replace(texts, embeddings=embeddings, pooled=pooled)
    return replace(draw, bank=bank)


def _kept(trainable: Trainable) -> dict[str, torch.Tensor]:
    return {
        name: each.detach().float().cpu().clone() for name, each in trainable.parameters.items()
    }
