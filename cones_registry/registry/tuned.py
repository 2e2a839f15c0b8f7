"""Tuned: the masks that joint tuning made for exactly one composition."""

from __future__ import annotations

from collections.abc import Iterable

from cones_registry.record import Concept
from cones_registry.resolver import Composition


def tuned_for(composition: Composition, candidates: Iterable[Concept]) -> list[Concept]:
    """The newest whole run of joint tuning among `candidates` for this composition.

    candidates: concepts whose method is TUNED, newest first. Empty if none was tuned for it:
    a run counts only if it was made from the same masks at the same rows (equal composition
    digest), and all the parts that it made are there.
    """
    runs: dict[str, dict[tuple[str, ...], Concept]] = {}
    for concept in candidates:
        parameters = concept.provenance.parameters if concept.provenance else {}
        if parameters.get("composition") != composition.digest:
            continue
        part_of = tuple(str(ref) for ref in parameters.get("part_of", ()))
        run = runs.setdefault(str(parameters.get("run")), {})
        run.setdefault(part_of, concept)
        if len(run) == parameters.get("parts"):
            return list(run.values())
    return []
