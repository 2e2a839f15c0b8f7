"""Extraction: what an extractor gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cones_registry.errors import UsageError
from cones_registry.extraction.target import highest

if TYPE_CHECKING:
    from cones_registry.base_model import ModelIdentity
    from cones_registry.extraction.target import Scores
    from cones_registry.mask import ConceptMask
    from cones_registry.record import Provenance, Scope


@dataclass(frozen=True, eq=False)
class Extraction:
    """A concept learnt from pictures, ready for ``registry.push``.

    mask: the neurons to shut. scope: at which rows it was learnt and belongs.
    token, class_noun: the words it answers to, "sks" and "dog".
    provenance: how it was made; history: its loss curve (the same as in the provenance).
    scores: what the neurons were chosen by, layer name -> float32 [out, in]; not stored with the
        mask; None if dropped. base: the base model it was learnt on.
    """

    mask: ConceptMask
    scope: Scope
    token: str
    class_noun: str
    provenance: Provenance
    history: tuple[Mapping[str, Any], ...] = ()
    scores: Scores | None = None
    base: ModelIdentity | None = None

    def __repr__(self) -> str:
        return (
            f"Extraction({self.token!r} {self.class_noun!r}, scope {self.scope}, "
            f"method {self.provenance.method}, {self.mask!r})"
        )

    @property
    def density(self) -> float:
        """Share of the base model's K/V weights that the mask shuts."""
        return self.mask.density

    def pushes(self, ref: str) -> list[dict[str, Any]]:
        """What ``registry.push(ref, extraction)`` keeps: the mask, with all that belongs to it."""
        return [
            {
                "ref": ref,
                "mask": self.mask,
                "base": self.base,
                "scope": self.scope,
                "token": self.token,
                "class_noun": self.class_noun,
                "provenance": self.provenance,
            }
        ]

    def record(self, base: str, *, tags: Sequence[str] = (), note: str = "") -> dict[str, Any]:
        """What a mask file says of it under ``concept`` in its footer (schema/mask.md).

        base: fingerprint of the base model it was learnt on.
        """
        return {
            "base": base,
            "scope": self.scope,
            "token": self.token,
            "class_noun": self.class_noun,
            "tags": list(tags),
            "note": note,
            "provenance": self.provenance.to_json(),
        }

    def cut(self, density: float) -> Extraction:
        """The same extraction with only the ``density`` · N neurons that score highest.

        Raises UsageError without scores, for a density outside [0, 1], or above the mask's own.
        """
        if self.scores is None:
            raise UsageError(
                "this extraction has no scores, so its mask cannot be cut. Extract again"
            )
        if not 0 <= density <= self.density:
            raise UsageError(
                f"cannot cut a mask of density {self.density:.4f} to {density}; "
                "expected less than it has. Extract again for more"
            )
        mask = highest(self.mask.table, self.scores, density) & self.mask
        parameters = {**self.provenance.parameters, "cut_to_density": density}
        provenance = replace(
            self.provenance,
            parameters=parameters,
            parents=(*self.provenance.parents, self.mask.digest),
        )
        return replace(self, mask=mask, provenance=provenance)
