"""What callers send: typed, bounded, and checked before anything is done with it."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from cones_registry.errors import LimitExceededError, UsageError
from cones_registry.picture_size import check_side
from cones_registry.seed import MAX_SEED
from cones_registry.serving.batching import SharedSettings
from cones_registry.serving.settings import ServiceSettings

T = TypeVar("T")

Seed = Annotated[int, msgspec.Meta(ge=0, le=MAX_SEED)]
Weight = Annotated[float, msgspec.Meta(gt=0, le=1)]


class ConceptChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A concept that acts on the picture, beside those the prompt names.

    ref: as ``alice/dog:prod``. weight: share of its neurons to shut.
    """

    ref: str
    weight: Weight = 1.0


class ImagesBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Body of ``POST /v1/images/generations``: OpenAI's fields, and some of our own.

    prompt: may name concepts, as ``a photo of <alice/dog> on a beach``. n: pictures, with seeds
    seed, seed + 1, …. size: ``WIDTHxHEIGHT`` in pixels or ``auto``. user: whose place in the queue
    it takes. stream, partial_images: server-sent events with pictures on the way. Ours: seed,
    steps, guidance_scale, negative_prompt, scheduler, concepts.
    """

    prompt: str
    model: str | None = None
    n: Annotated[int, msgspec.Meta(ge=1)] = 1
    size: str = "auto"
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "webp"] = "png"
    user: Annotated[str, msgspec.Meta(max_length=200)] | None = None
    stream: bool = False
    partial_images: Annotated[int, msgspec.Meta(ge=0, le=3)] = 0
    quality: Literal["auto", "standard"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    seed: Seed | None = None
    steps: Annotated[int, msgspec.Meta(ge=1)] | None = None
    guidance_scale: Annotated[float, msgspec.Meta(ge=0, lt=1000)] | None = None
    negative_prompt: str = ""
    scheduler: str | None = None
    concepts: list[ConceptChoice] = []

    def settings(self) -> SharedSettings:
        """What the pictures share with others of a batch."""
        width, height = self.sides()
        return SharedSettings(self.steps, self.guidance_scale, height, width, self.scheduler)

    def sides(self) -> tuple[int | None, int | None]:
        """Width and height in pixels; None is the model's own."""
        if self.size == "auto":
            return None, None
        width, cross, height = self.size.partition("x")
        if not (cross and _is_count(width) and _is_count(height)):
            raise UsageError(
                f"size is {self.size[:40]!r}; expected WIDTHxHEIGHT, as 512x512, or auto"
            )
        return check_side("width", int(width)), check_side("height", int(height))

    def first_seed(self) -> int:
        """The seed that was asked for, or one nobody can foresee."""
        return secrets.randbelow(1 << 32) if self.seed is None else self.seed

    def check(self, limits: ServiceSettings) -> None:
        """Raise LimitExceededError or UsageError for what this service does not draw."""
        longest = max(len(self.prompt), len(self.negative_prompt))
        sides = [side for side in self.sides() if side is not None]
        for name, value, most in (
            ("prompt, in characters,", longest, limits.max_prompt),
            ("n", self.n, min(limits.max_pictures, limits.max_waiting)),
            ("steps", self.steps or 0, limits.max_steps),
            ("size, in pixels a side,", max(sides, default=0), limits.max_side),
            ("concepts", len(self.concepts), limits.max_concepts),
        ):
            if value > most:
                raise LimitExceededError(f"{name} is {value}; this service takes at most {most}")
        if self.response_format == "url" and limits.is_replicated:
            raise UsageError(
                "pictures are not kept here: several replicas answer. Ask for b64_json"
            )
        if self.seed is not None and self.seed + self.n - 1 > MAX_SEED:
            raise UsageError(f"seed {self.seed} and n {self.n} pass the last seed {MAX_SEED}")


class CompositionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/compositions``: the concepts that are to be combined."""

    concepts: Annotated[list[ConceptChoice], msgspec.Meta(min_length=1)]


def parse(data: bytes, kind: type[T]) -> T:
    """A body as ``kind``; UsageError that says where it does not fit."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"the body does not fit: {error}. See /openapi.json") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(f"the body is no JSON: {error}. Expected a JSON object") from None


def schemas() -> dict[str, Any]:
    """JSON Schemas of the bodies, for the OpenAPI document."""
    _, components = msgspec.json.schema_components(
        [ImagesBody, CompositionBody], ref_template="#/components/schemas/{name}"
    )
    return components


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 6
