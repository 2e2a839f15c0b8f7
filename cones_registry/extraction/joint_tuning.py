"""Joint tuning: a few steps on all subjects of a composition together.

What the members of each mask are multiplied by, 0 until then, is learnt: the members stay, their
factors become graded. Source: Cones, arXiv 2303.05125, "a few steps of further fine-tuning".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from cones_registry.attention import RowEdit
from cones_registry.base_model.versions import library_versions
from cones_registry.digest import quote, sha256_bytes
from cones_registry.errors import BaseModelMismatchError, UsageError
from cones_registry.extraction.batches import Batches, Draw
from cones_registry.extraction.conditioning import find_rows
from cones_registry.extraction.images import Sources
from cones_registry.extraction.loss import DivergedError, denoising_losses
from cones_registry.extraction.methods import Curve
from cones_registry.extraction.subject_images import SubjectImages, gather_all
from cones_registry.extraction.tuning import TunedPart, TuneSettings, Tuning
from cones_registry.extraction.weights import FlatWeights
from cones_registry.factors import TWO_BIT_LEVELS
from cones_registry.mask import ConceptMask
from cones_registry.record import TUNED, Provenance

if TYPE_CHECKING:
    from pathlib import Path

    from cones_registry.attention.composed import Composed, ComposedPart
    from cones_registry.base_model import BaseModel
    from cones_registry.extraction.examples import ExampleBank
    from cones_registry.extraction.materials import Materials
    from cones_registry.extraction.noise import NoiseSchedule
    from cones_registry.extraction.progress import OnStep
    from cones_registry.extraction.settings import ExtractionSettings
    from cones_registry.factors import Precision
    from cones_registry.record import Scope


def tune(
    base: BaseModel,
    schedule: NoiseSchedule,
    composition: Composed,
    images: Mapping[str, SubjectImages | Sources],
    *,
    tuning: TuneSettings,
    settings: ExtractionSettings,
    seed: int,
    cache_folder: Path,
    on_step: OnStep,
) -> Tuning:
    """See ``Extractor.tune``."""
    _require_base(base, composition)
    _require_phrase_rows(settings)
    materials = gather_all(base, _subjects(composition, images))
    scope: Scope = "prompt" if any(p.scope == "prompt" for p in composition.parts) else "subject"
    batches = Batches.gather(
        base,
        schedule,
        materials,
        settings=settings,
        weighed=settings.for_scope(scope),
        batch_size=tuning.batch_size,
        seed=seed,
        cache_folder=cache_folder,
        together=tuning.together,
    )
    steps = tuning.steps or 40 * len(materials)
    curve = Curve(steps, on_step)
    masks = _Factors(base, composition.parts, tuning.precision)
    optimizer = torch.optim.Adam(masks.factors, lr=tuning.learning_rate, betas=(0.9, 0.99))
    for number in range(1, steps + 1):
        wave = 0.5 * (1 + math.cos(math.pi * (number - 1) / max(steps - 1, 1)))
        optimizer.param_groups[0]["lr"] = tuning.learning_rate * (0.1 + 0.9 * wave)
        losses = [
            weight * denoising_losses(base, schedule, draw, masks.edits(draw)).mean()
            for weight, draw in batches.next()
        ]
        loss = torch.stack(losses).sum()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(
                f"the loss is {value} at step {number}. Use a smaller learning_rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        masks.bound()
        curve.add(number, value)
    around = {name: value for name, value in asdict(settings).items() if name != "rows"}
    parameters = {**around, **asdict(tuning), **batches.counts, "steps": steps}
    return _tuned(composition, masks, tuning.precision, materials, parameters, seed, curve)


class _Factors:
    """float32 [members] of each part, learnt; and the row edits they make."""

    def __init__(
        self, base: BaseModel, parts: Sequence[ComposedPart], precision: Precision
    ) -> None:
        self._base, self._parts = base, parts
        self._bounded = precision == "2bit"
        self._weights = FlatWeights(base)
        device = self._weights.values.device
        self._index: list[torch.Tensor] = []
        self.factors: list[torch.nn.Parameter] = []
        for part in parts:
            offset, found = 0, []
            for layer in part.mask.table.layers:
                found.append(torch.from_numpy(part.mask.indices(layer.name)).long() + offset)
                offset += layer.neuron_count
            self._index.append(torch.cat(found).to(device))
            kept = part.mask.factors
            start = torch.zeros(len(part.mask))
            if kept is not None:
                start = torch.from_numpy(kept.astype("float32"))
            self.factors.append(torch.nn.Parameter(start.to(device)))
        self._rows: dict[int, list[torch.Tensor | None]] = {}
        self.bound()

    def bound(self) -> None:
        """Project the factors to [0, 1] where 2 bits are to hold them: no others can be kept."""
        if self._bounded:
            with torch.no_grad():
                for factors in self.factors:
                    factors.clamp_(0, 1)

    def edits(self, draw: Draw) -> list[RowEdit]:
        """Rows of scope ``prompt`` first, then each subject's, which see both."""
        theta = self._weights.values
        everywhere = theta
        edits: list[RowEdit] = []
        rows = self._rows_of(draw.bank)
        for number, part in enumerate(self._parts):
            if part.scope == "prompt":
                everywhere = everywhere * self._multiplier(number)
        if everywhere is not theta:
            edits.append(self._weights.edit(everywhere, None))
        for number, where in enumerate(rows):
            if where is not None:
                flat = everywhere * self._multiplier(number)
                edits.append(self._weights.edit(flat, where[draw.prompts]))
        return edits

    def _multiplier(self, number: int) -> torch.Tensor:
        ones = torch.ones_like(self._weights.values)
        factors: torch.Tensor = self.factors[number]
        if self._bounded:
            # The loss is of the levels that are kept; the gradient goes straight through.
            levels = len(TWO_BIT_LEVELS) - 1
            factors = factors + ((factors * levels).round() / levels - factors).detach()
        return ones.index_copy(0, self._index[number], factors)

    def _rows_of(self, bank: ExampleBank) -> list[torch.Tensor | None]:
        """bool [P, T] of each part of scope ``subject``; None for one of scope ``prompt``."""
        if id(bank) not in self._rows:
            length = bank.texts.rows.shape[1]
            self._rows[id(bank)] = [
                find_rows(self._base, bank.prompts, part.token, part.class_noun or "", length)
                if part.scope == "subject"
                else None
                for part in self._parts
            ]
        return self._rows[id(bank)]


def _require_base(base: BaseModel, composition: Composed) -> None:
    table = base.layer_table
    known = (base.fingerprint, table.digest)
    if composition.table.digest != table.digest or composition.base not in known:
        raise BaseModelMismatchError(
            f"the composition was made for base model {composition.base}, this is "
            f"{base.fingerprint} ({base.source}). Load the base model it was made for"
        )


def _require_phrase_rows(settings: ExtractionSettings) -> None:
    """The rows of a composition's masks are their concepts' own: what is drawn with decides."""
    if settings.rows != "phrase":
        raise UsageError(
            f"rows={quote(settings.rows)} cannot be asked for in tuning: each mask is tuned at the "
            "rows of its own concept's token and class noun, where it will act. Leave rows out"
        )


def _subjects(
    composition: Composed, images: Mapping[str, SubjectImages | Sources]
) -> list[SubjectImages]:
    """Pictures of every member, with the words its concept was learnt with."""
    refs = [member.ref for member in composition.members]
    if set(images) != set(refs):
        raise UsageError(
            f"images are given for {', '.join(map(quote, sorted(images))) or 'nothing'}; expected "
            f"one entry for each concept: {', '.join(map(quote, refs))}"
        )
    found = []
    for member in composition.members:
        given = images[member.ref]
        if isinstance(given, SubjectImages):
            found.append(given)
            continue
        concept = member.concept
        if not concept.token or not concept.class_noun:
            raise UsageError(
                f"{member.ref!r} has no token or no class noun. Give its pictures as "
                "SubjectImages(images, token, class_noun)"
            )
        found.append(SubjectImages(given, concept.token, concept.class_noun))
    return found


def _tuned(
    composition: Composed,
    masks: _Factors,
    precision: Precision,
    materials: Sequence[Materials],
    parameters: dict[str, Any],
    seed: int,
    curve: Curve,
) -> Tuning:
    refs = tuple(member.ref for member in composition.members)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    pictures = tuple(picture.digest for each in materials for picture in each.pictures)
    graded = [
        ConceptMask.trusted(
            part.mask.table,
            part.mask.words,
            factors.detach().float().cpu().numpy(),
            precision,
        )
        for part, factors in zip(composition.parts, masks.factors, strict=True)
    ]
    run = sha256_bytes("\n".join(mask.digest for mask in graded).encode("ascii"))
    parts = []
    for mask, part in zip(graded, composition.parts, strict=True):
        provenance = Provenance(
            method=TUNED,
            seed=seed,
            parameters={
                **parameters,
                "composition": composition.digest,
                "run": run,
                "parts": len(graded),
                "part_of": list(part.refs),
                "subjects": [each.name for each in materials],
            },
            image_digests=pictures,
            history=tuple(curve.history),
            versions=library_versions(),
            prompt=materials[0].captions[0].text(materials[0].name),
            created=created,
            parents=refs,
        )
        parts.append(
            TunedPart(mask, part.scope, part.token, part.class_noun, part.refs, provenance)
        )
    return Tuning(composition.base, composition.table, tuple(parts), tuple(curve.history))
