"""Generator: stock pipelines and schedulers do the sampling, masks come in through K/V rows."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

import torch

from cones_registry.attention import row_count, shut, unservable_reason
from cones_registry.attention.projecting import install
from cones_registry.base_model.watch import WatchedAutoencoder, failures
from cones_registry.errors import UsageError
from cones_registry.generation.failed import FailedPicturesError
from cones_registry.generation.parts import Branches, branches
from cones_registry.generation.preview import PreviewCallback, StepCallback
from cones_registry.generation.request import (
    ConceptSource,
    Request,
    check_base,
    check_unknown,
    read_request,
)
from cones_registry.generation.schedulers import check_scheduler, fresh_scheduler
from cones_registry.generation.settings import (
    PhaseCallback,
    Settings,
    check_settings,
    family_arguments,
    has_step_callback,
)
from cones_registry.generation.unread import unread_text
from cones_registry.generation.view import PlannedModel, pipeline_view

if TYPE_CHECKING:
    from PIL.Image import Image

    from cones_registry.base_model import BaseModel

_LOGGER = logging.getLogger(__name__)
_MAX_TOLD = 10_000  # prompts whose end that is not read is remembered


class Generator:
    """Draws requests with one base model. Safe to share between threads."""

    def __init__(self, base: BaseModel, *, registry: ConceptSource | None = None) -> None:
        """base: draws. registry: where concepts that prompts name are looked up."""
        self.base = base
        # (prompt, max_sequence_length, negative) -> its end that is not read
        self._told: dict[tuple[str, int | None, bool], str] = {}
        self.registry = registry

    @property
    def takes_on_step(self) -> bool:
        """Whether this model's stock pipeline calls back after each step (PixArt's does not)."""
        return has_step_callback(self.base.pipeline)

    def unread(
        self,
        request: Request,
        max_sequence_length: int | None = None,
        *,
        negative: bool = False,
    ) -> str:
        """The end of the prompt of ``request`` that the text encoder does not read, or nothing.

        What is read stands in the prompt with concepts' words in place of their names. The log
        tells of it when the request is drawn, unless it was asked for here before.
        max_sequence_length: what the stock pipeline is told, where it takes that.
        negative: of its negative prompt.
        """
        request = read_request(request, self.registry)
        prompt = request.negative_text if negative else request.text
        key = (prompt, max_sequence_length, negative)
        if key not in self._told:
            if len(self._told) >= _MAX_TOLD:
                self._told.clear()
            self._told[key] = unread_text(self.base, prompt, max_sequence_length, negative=negative)
        return self._told[key]

    def generate(
        self,
        requests: Sequence[Request],
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        scheduler: Any = None,
        batch_size: int | None = None,
        mask_unconditional: bool = True,
        include_padding: bool = False,
        on_step: StepCallback | None = None,
        on_preview: PreviewCallback | None = None,
        preview_every: int = 1,
        on_phase: PhaseCallback | None = None,
        progress: bool = False,
        **pipeline_arguments: Any,
    ) -> list[Image]:
        """Draw all requests, in one batch unless told otherwise; pictures in the requests' order.

        steps: denoising steps. guidance_scale: classifier-free guidance; 1 or less turns it off.
            By default what the base model says (``base.defaults``), else 50 and 7.5.
        height, width: pixels, multiples of 8; by default the model's own size.
        scheduler: None (the pipeline's), a name such as ``"dpm"``, a diffusers class or instance.
        batch_size: pictures drawn at a time (None: all). Any mix of masks fits in one batch.
        mask_unconditional: masks act on the unconditional branch too, as in the paper, where the
            whole model is masked; False keeps that branch the plain model.
        include_padding: masks of scope ``subject`` act on the rows after the prompt as well.
        on_step: diffusers' ``callback_on_step_end(pipeline, step, timestep, tensors) -> tensors``.
        on_preview: ``on_preview(step, pictures)`` with the latents of a batch decoded, after every
            ``preview_every`` steps.
        on_phase: ``on_phase(name, seconds)`` after each batch, of "kv" (K and V of its text),
            "denoise" and "decode" (pixels from latents).
        progress: show a bar over steps.
        pipeline_arguments: given to the stock pipeline as they are (``eta`` …); one it does not
            know is an error.

        Without a mask the picture is the stock pipeline's for the same seed.
        Raises BaseModelMismatchError before any work if a mask was made for another model,
        NotFoundError if a prompt does not name a subject, or names a concept that is not there,
        UsageError for wrong settings, a scheduler that cannot use what the model predicts, or more
        steps than it was trained with.
        Raises FailedPicturesError, which holds the others, when all are drawn and some are no
        pictures: their numbers overflowed, or the model's safety checker blacked them out.
        """
        drawn = list(
            self._drawn(
                requests,
                steps=steps,
                guidance_scale=guidance_scale,
                height=height,
                width=width,
                scheduler=scheduler,
                batch_size=batch_size,
                mask_unconditional=mask_unconditional,
                include_padding=include_padding,
                on_step=on_step,
                on_preview=on_preview,
                preview_every=preview_every,
                on_phase=on_phase,
                progress=progress,
                **pipeline_arguments,
            )
        )
        reasons = {number: each for number, each in enumerate(drawn) if isinstance(each, str)}
        if reasons:
            pictures = [None if isinstance(each, str) else each for each in drawn]
            raise FailedPicturesError(pictures, reasons)
        return [each for each in drawn if not isinstance(each, str)]

    def stream(
        self,
        requests: Sequence[Request],
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        scheduler: Any = None,
        batch_size: int | None = None,
        mask_unconditional: bool = True,
        include_padding: bool = False,
        on_step: StepCallback | None = None,
        on_preview: PreviewCallback | None = None,
        preview_every: int = 1,
        on_phase: PhaseCallback | None = None,
        progress: bool = False,
        **pipeline_arguments: Any,
    ) -> Iterator[Image]:
        """As ``generate``, but yields the pictures of each batch as it is done, in order.

        Everything is checked when this is called, before the first batch. A picture that is none
        raises FailedPicturesError in its place.
        """
        return _raising(
            self._drawn(
                requests,
                steps=steps,
                guidance_scale=guidance_scale,
                height=height,
                width=width,
                scheduler=scheduler,
                batch_size=batch_size,
                mask_unconditional=mask_unconditional,
                include_padding=include_padding,
                on_step=on_step,
                on_preview=on_preview,
                preview_every=preview_every,
                on_phase=on_phase,
                progress=progress,
                **pipeline_arguments,
            )
        )

    def _drawn(
        self,
        requests: Sequence[Request],
        *,
        steps: int | None,
        guidance_scale: float | None,
        height: int | None,
        width: int | None,
        scheduler: Any,
        batch_size: int | None,
        mask_unconditional: bool,
        include_padding: bool,
        on_step: StepCallback | None,
        on_preview: PreviewCallback | None,
        preview_every: int,
        on_phase: PhaseCallback | None,
        progress: bool,
        **pipeline_arguments: Any,
    ) -> Iterator[Image | str]:
        """Check everything; then the pictures, or in the place of one that is none, why."""
        usual = self.base.defaults
        settings = Settings(
            steps=usual.steps if steps is None else steps,
            guidance_scale=usual.guidance_scale if guidance_scale is None else guidance_scale,
            height=height,
            width=width,
            scheduler=scheduler,
            mask_unconditional=mask_unconditional,
            include_padding=include_padding,
            on_step=on_step,
            on_preview=on_preview,
            preview_every=preview_every,
            on_phase=on_phase,
            progress=progress,
            pipeline_arguments=pipeline_arguments,
        )
        check_settings(self.base.pipeline, settings, batch_size)
        requests = [read_request(request, self.registry) for request in requests]
        for request in requests:
            check_base(request, self.base)
            check_unknown(request, self.base)
        rows = row_count(self.base, pipeline_arguments.get("max_sequence_length"))
        self._tell_unread(requests, pipeline_arguments.get("max_sequence_length"))
        planned = [
            branches(
                request,
                self.base,
                rows=rows,
                mask_unconditional=mask_unconditional,
                include_padding=include_padding,
            )
            for request in requests
        ]
        check_scheduler(self.base.pipeline.scheduler, scheduler, settings.steps)
        reason = unservable_reason(self.base.denoiser)
        if reason is not None:
            return self._in_place(requests, planned, settings, reason)
        return self._batches(requests, planned, settings, batch_size or max(len(requests), 1))

    def _tell_unread(self, requests: list[Request], max_sequence_length: int | None) -> None:
        for request in requests:
            for negative in (False, True):
                prompt = request.negative_text if negative else request.text
                if not prompt or (prompt, max_sequence_length, negative) in self._told:
                    continue
                unread = self.unread(request, max_sequence_length, negative=negative)
                if unread:
                    _LOGGER.warning(
                        "the text encoder does not read the end of the %s %r: %r",
                        "negative prompt" if negative else "prompt",
                        prompt,
                        unread,
                    )

    def _batches(
        self,
        requests: list[Request],
        planned: list[Branches],
        settings: Settings,
        batch_size: int,
    ) -> Iterator[Image | str]:
        # Asked again: since the pictures were asked for, others may have changed the model.
        reason = unservable_reason(self.base.denoiser)
        if reason is not None:
            yield from self._in_place(requests, planned, settings, reason)
            return
        install(self.base.denoiser)
        for start in range(0, len(requests), batch_size):
            chunk = slice(start, start + batch_size)
            yield from self._batch(requests[chunk], planned[chunk], settings)

    def _batch(
        self, requests: list[Request], planned: list[Branches], settings: Settings
    ) -> list[Image | str]:
        """One batch; split in two where an empty negative prompt has embeddings of its own."""
        pictures: dict[int, Image | str] = {}
        for group in _uniform_negatives(requests, self.base.pipeline):
            denoiser = PlannedModel(self.base.denoiser, [planned[number] for number in group])
            chosen = [requests[number] for number in group]
            pictures.update(zip(group, self._draw(denoiser, chosen, settings), strict=True))
        return [pictures[number] for number in range(len(requests))]

    def _in_place(
        self, requests: list[Request], planned: list[Branches], settings: Settings, reason: str
    ) -> Iterator[Image | str]:
        """Pictures by shutting weights, if that can do what is asked for; checked at once."""
        _check_in_place(self.base, planned, settings, reason)
        _LOGGER.warning("K/V rows are not served (%s): one mask at a time, in place", reason)
        return self._one_by_one(requests, planned, settings)

    def _one_by_one(
        self, requests: list[Request], planned: list[Branches], settings: Settings
    ) -> Iterator[Image | str]:
        for request, plan in zip(requests, planned, strict=True):
            masks = [part.mask for part in plan.conditional.parts]
            with self.base.lock:
                context: AbstractContextManager[Any] = nullcontext()
                if masks:
                    context = shut(self.base.denoiser, reduce(or_, masks))
                with context:
                    picture = self._draw(self.base.denoiser, [request], settings)
            yield from picture

    def _draw(
        self, denoiser: Any, requests: list[Request], settings: Settings
    ) -> list[Image | str]:
        """One call of the stock pipeline: pictures, or why there is none."""
        base = self.base
        scheduler = fresh_scheduler(base.pipeline.scheduler, settings.scheduler)
        view = pipeline_view(base, denoiser, scheduler, progress=settings.progress)
        negatives = [request.negative_text for request in requests]
        arguments = {
            "prompt": [request.text for request in requests],
            "num_inference_steps": settings.steps,
            "generator": [torch.Generator("cpu").manual_seed(r.seed) for r in requests],
            "output_type": "pil",
            **family_arguments(view, settings, negatives),
            **settings.pipeline_arguments,
        }
        # A half-precision autoencoder that upcasts itself while decoding changes shared weights.
        exclusive = base.lock if _upcasts_autoencoder(view) else nullcontext()
        watched = None
        if getattr(view, "vae", None) is not None:
            watched = view.__dict__["vae"] = WatchedAutoencoder(view.vae)
        began = time.perf_counter()
        with exclusive:
            output = view(**arguments)
        if settings.on_phase is not None:
            decoding = 0.0 if watched is None else watched.seconds
            projecting = denoiser.seconds if isinstance(denoiser, PlannedModel) else 0.0
            settings.on_phase("kv", projecting)
            settings.on_phase("denoise", time.perf_counter() - began - projecting - decoding)
            settings.on_phase("decode", decoding)
        failed = failures(watched, output, len(requests), dtype=base.dtype)
        frames = getattr(output, "frames", None)  # of pipelines for videos, here of one frame
        images = output.images if frames is None else [each[0] for each in frames]
        return [failed.get(number, picture) for number, picture in enumerate(images)]


def _raising(drawn: Iterator[Image | str]) -> Iterator[Image]:
    """The pictures of ``drawn``; raises where there is none."""
    for each in drawn:
        if isinstance(each, str):
            raise FailedPicturesError([None], {0: each})
        yield each


def _check_in_place(
    base: BaseModel, planned: list[Branches], settings: Settings, reason: str
) -> None:
    """Raise UsageError where shutting in place cannot do what a request asks for."""
    parts = [part for plan in planned for part in plan.conditional.parts]
    if any(part.rows is not None for part in parts) or (parts and not settings.mask_unconditional):
        raise UsageError(
            f"{base.source!r} cannot be served K/V rows ({reason}), so a mask acts on every row of "
            "both branches there. Use scope 'prompt' and mask_unconditional=True"
        )


def _uniform_negatives(requests: list[Request], pipeline: Any) -> list[list[int]]:
    """Request numbers in groups that may share a call of the stock pipeline.

    SDXL takes zeros for "no negative prompt" and the encoding of "" for an empty one beside others:
    in one call a request would be drawn differently because of its neighbours.
    """
    numbers = list(range(len(requests)))
    if not getattr(pipeline.config, "force_zeros_for_empty_prompt", False):
        return [numbers]
    groups = [
        [number for number in numbers if bool(requests[number].negative_text) is negative]
        for negative in (False, True)
    ]
    return [group for group in groups if group]


def _upcasts_autoencoder(view: Any) -> bool:
    autoencoder = view.vae
    return bool(
        autoencoder.dtype == torch.float16
        and getattr(autoencoder.config, "force_upcast", False)
        and hasattr(view, "upcast_vae")
    )
