"""How concepts are shown: one record, one row of a table, one line of a list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cones_registry.quantities import share, size

from .output import Output

if TYPE_CHECKING:
    from cones_registry.mask import ConceptMask
    from cones_registry.record import Concept
    from cones_registry.registry import Registry

    from .session import Session

COLUMNS = ("ref", "usage", "aliases", "tags", "neurons", "density", "bytes", "scope", "created")


def row(concept: Concept) -> tuple[object, ...]:
    """One concept as the cells of COLUMNS."""
    return (
        concept.ref + (" (removed)" if concept.removed else ""),
        concept.usage,
        ", ".join(sorted(concept.aliases)),
        ", ".join(concept.tags),
        f"{concept.neuron_count:,}",
        share(concept.density),
        size(concept.blob_bytes),
        concept.scope,
        str(concept.created)[:16].replace("T", " "),
    )


def exact(concept: Concept) -> tuple[object, ...]:
    """One concept as the values of COLUMNS, for programs: numbers in full, lists by spaces."""
    return (
        concept.ref,
        concept.usage,
        " ".join(concept.aliases),
        " ".join(concept.tags),
        concept.neuron_count,
        concept.density,
        concept.blob_bytes,
        concept.scope,
        concept.created,
    )


def record(concept: Concept) -> dict[str, Any]:
    """One concept as a JSON object: its fields and its ref."""
    return {"ref": concept.ref, **concept.to_json()}


def show_record(output: Output, concept: Concept) -> None:
    """Everything about one concept."""
    if output.as_json:
        output.document(record(concept))
        return
    provenance = concept.provenance
    fields: dict[str, object] = {
        "ref": concept.ref + (" (removed)" if concept.removed else ""),
        "aliases": ", ".join(sorted(concept.aliases)),
        "tags": ", ".join(concept.tags),
        "note": concept.note,
        "created": concept.created,
        "in a prompt": f"<{concept.owner}/{concept.name}>"
        + (f" or “{concept.usage}”" if concept.usage else ""),
        "scope": concept.scope,
        "token": concept.token,
        "class noun": concept.class_noun,
        "neurons": f"{concept.neuron_count:,} of {concept.table_neuron_count:,}"
        f" ({share(concept.density)})",
        "precision": concept.precision,
        "layout": concept.layout,
        "bytes": f"{concept.blob_bytes:,} ({size(concept.blob_bytes)})",
        "scores": "kept, so it can be cut (resolve REF*0.7)" if concept.ranked else "",
        "base": concept.base,
        "mask": concept.mask_digest,
        "blob": concept.blob_digest,
        "previews": ", ".join(concept.previews) + " (--open shows them)" * bool(concept.previews),
    }
    if provenance is not None:
        fields["method"] = provenance.method
        fields["seed"] = provenance.seed
        fields["prompt"] = provenance.prompt
        fields["parameters"] = _assignments(provenance.parameters)
        fields["images"] = f"{len(provenance.image_digests)}" if provenance.image_digests else ""
        fields["parents"] = ", ".join(provenance.parents)
        fields["versions"] = _assignments(provenance.versions)
    output.fields(fields)


def warn_of_duplicates(
    session: Session, registry: Registry, concept: Concept, mask: ConceptMask
) -> None:
    """Say which concepts have nearly the mask just pushed, as far as this machine knows."""
    for each in registry.near_duplicates(concept, mask):
        session.output.message(
            f"{each.ref} is nearly the same mask (about {share(each.jaccard)} of the neurons of "
            f"both). To compare: cones diff {concept.ref} {each.ref}"
        )


def _assignments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
