"""What a page shows of a concept: plain values, ready for a template to escape."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from cones_registry.layers import short_layer_name
from cones_registry.quantities import share, size

if TYPE_CHECKING:
    from cones_registry.catalog.history import Happening
    from cones_registry.mask import ConceptMask
    from cones_registry.record import Concept, Provenance

LONGEST_BAR: Final = 200
_LETTER: Final = 6.5  # width of one in a bar's label, which is 11 high
_AFTER_BAR: Final = 60
_BAR_STEP: Final = 18
_LONGEST_TEXT: Final = 500


@dataclass(frozen=True)
class ConceptView:
    """One version of a concept as cards and pages show it.

    Attributes:
        usage: how prompts speak of it, as "a sks dog"; empty without token or noun.
        named: how a prompt names it, as "<alice/dog>".
        previews: names of its pictures, as ``site.preview`` takes them.
        alt: what a picture of it shows, for those who do not see it.
        facts: name and value of everything a person may want to look up.
    """

    owner: str
    name: str
    version: int
    ref: str
    usage: str
    named: str
    aliases: tuple[str, ...]
    tags: tuple[str, ...]
    note: str
    created: str
    method: str
    size: str
    density: str
    previews: tuple[str, ...]
    alt: str
    facts: tuple[tuple[str, str], ...]
    bars: Bars | None = None


@dataclass(frozen=True)
class Bar:
    """One layer's bar; ``y`` and ``width`` in the units of the drawing."""

    label: str
    y: int
    width: float
    value: str


@dataclass(frozen=True)
class Bars:
    """Density per layer as bars.

    Attributes:
        rows: one bar for each layer.
        left: where bars begin, right of the labels.
        width: of the whole drawing.
        height: of the whole drawing.
        longest: density that the longest bar stands for.
    """

    rows: tuple[Bar, ...]
    left: int
    width: int
    height: int
    longest: str


def view(concept: Concept, *, mask: ConceptMask | None = None) -> ConceptView:
    """The concept as pages show it. mask: for the bars of its density in each layer."""
    usage = concept.usage
    method = concept.provenance.method if concept.provenance is not None else ""
    facts = {
        "Newest version": concept.ref,
        "Made": _moment(concept.created),
        "Acts on": "its own words" if concept.scope == "subject" else "the whole prompt",
        "Neurons": f"{concept.neuron_count:,} of {concept.table_neuron_count:,}"
        f" ({share(concept.density)})",
        "Kept as": f"{size(concept.blob_bytes)}, {concept.precision}, {concept.layout}",
        "Base model": concept.base,
        "Mask": concept.mask_digest,
    }
    return ConceptView(
        owner=concept.owner,
        name=concept.name,
        version=concept.version,
        ref=concept.ref,
        usage=usage,
        named=f"<{concept.owner}/{concept.name}>",
        aliases=tuple(concept.aliases),
        tags=tuple(concept.tags),
        note=concept.note,
        created=_moment(concept.created),
        method=method,
        size=size(concept.blob_bytes),
        density=share(concept.density),
        previews=concept.previews,
        alt=f"Drawn with {concept.owner}/{concept.name}" + (f": {usage}" if usage else ""),
        facts=tuple((name, value) for name, value in facts.items() if value),
        bars=None if mask is None else density_bars(mask),
    )


def density_bars(mask: ConceptMask) -> Bars:
    """One bar for each layer, the longest ``LONGEST_BAR`` wide."""
    shares = {
        layer.name: count / layer.neuron_count
        for layer, count in zip(mask.table.layers, mask.counts.tolist(), strict=True)
    }
    longest = max(shares.values(), default=0.0)
    rows = tuple(
        Bar(
            short_layer_name(name),
            number * _BAR_STEP,
            round(LONGEST_BAR * density / longest, 1) if longest else 0.0,
            share(density),
        )
        for number, (name, density) in enumerate(shares.items())
    )
    left = round(_LETTER * max((len(row.label) for row in rows), default=0)) + 8
    width = left + LONGEST_BAR + _AFTER_BAR
    return Bars(rows, left, width, len(rows) * _BAR_STEP, share(longest))


def provenance_facts(provenance: Provenance | None) -> tuple[tuple[str, str], ...]:
    """How a version was made, as names and values."""
    if provenance is None:
        return ()
    facts = {
        "Method": provenance.method,
        "Seed": str(provenance.seed),
        "Prompt": provenance.prompt or "",
        "Pictures": str(len(provenance.image_digests) or ""),
        "Parameters": _assignments(provenance.parameters),
        "Made from": ", ".join(provenance.parents),
        "Libraries": _assignments(provenance.versions),
    }
    return tuple((name, _cut(value)) for name, value in facts.items() if value)


def history_line(happening: Happening) -> dict[str, str]:
    """One change as a line of a page."""
    moment = datetime.fromtimestamp(happening.time / 1000, UTC)
    detail = _assignments(happening.detail)
    version = "" if happening.version is None else f" of version {happening.version}"
    return {
        "when": f"{moment:%Y-%m-%d %H:%M}",
        "who": happening.actor,
        "what": _cut(f"{happening.kind}{version}" + (f": {detail}" if detail else "")),
    }


def newest(concepts: Iterable[Concept]) -> Concept:
    """The version with the highest number."""
    return max(concepts, key=lambda concept: concept.version)


def _moment(created: str) -> str:
    return str(created)[:16].replace("T", " ")


def _assignments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_plain(value)}" for name, value in values.items())


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"
