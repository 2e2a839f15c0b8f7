"""Tuning: what joint tuning is asked for and what it gives; ``Extractor.tune`` makes one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cones_registry.digest import quote
from cones_registry.errors import UsageError
from cones_registry.factors import PRECISIONS, Precision
from cones_registry.mask import ConceptMask
from cones_registry.record import Provenance

if TYPE_CHECKING:
    from cones_registry.layers import LayerTable
    from cones_registry.record import Scope

_GRADED = tuple(precision for precision in PRECISIONS if precision != "binary")
_NO_PART_OF_A_NAME = re.compile(r"[^a-z0-9]+", re.ASCII)


@dataclass(frozen=True)
class TuneSettings:
    """How factors are learnt.

    steps: batches in all; None: 40 for each subject. batch_size: pictures in each.
    learning_rate: of Adam, falling to a tenth by a cosine. precision: what factors are kept at:
    "float16", "float32", or "2bit": the nearest of 0, ⅓, ⅔ and 1, in learning as in keeping
    (straight-through estimation, arXiv 1308.3432).
    together: pictures of the other subjects are companions, so the subjects are seen side by side.
    """

    steps: int | None = None
    batch_size: int = 8
    learning_rate: float = 0.1
    precision: Precision = "float16"
    together: bool = True

    def __post_init__(self) -> None:
        """Raise UsageError for values that cannot be."""
        if (self.steps is not None and self.steps < 1) or self.batch_size < 1:
            raise UsageError(
                f"steps={self.steps}, batch_size={self.batch_size}; expected at least 1 of each"
            )
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"learning_rate={self.learning_rate}; expected above 0")
        if self.precision not in _GRADED:
            raise UsageError(
                f"precision={quote(self.precision)}; expected one of {', '.join(_GRADED)}, which "
                "hold the factors that tuning learns"
            )


@dataclass(frozen=True)
class TunedPart:
    """A mask of the composition with learnt factors; what ``Request`` and ``push`` need of it."""

    mask: ConceptMask
    scope: Scope
    token: str | None
    class_noun: str | None
    refs: tuple[str, ...]
    provenance: Provenance


@dataclass(frozen=True, eq=False)
class Tuning:
    """A composition after joint tuning; ``Request(prompt, composition=tuning)`` draws with it.

    base: fingerprint. table: layers. parts: as the composition's, with factors.
    history: the loss curve.
    """

    base: str
    table: LayerTable
    parts: tuple[TunedPart, ...]
    history: tuple[Mapping[str, Any], ...] = field(repr=False)

    def pushes(self, ref: str) -> list[dict[str, Any]]:
        """What ``registry.push_many`` keeps of it: derived concepts named after ``ref``.

        One part is ``ref`` itself; of several each is ``ref-token``, in the letters a name may
        have: ``ref-v`` for "V*". ``registry.resolve(…, tuned=True)`` finds them by the concepts
        they were tuned from.
        """
        return [
            {
                "ref": ref if len(self.parts) == 1 else f"{ref}-{ending}",
                "mask": part.mask,
                "base": self.base,
                "scope": part.scope,
                "token": part.token,
                "class_noun": part.class_noun,
                "provenance": part.provenance,
            }
            for part, ending in zip(self.parts, self._endings(), strict=True)
        ]

    def _endings(self) -> list[str]:
        """What tells the parts' names apart: the token as a name can hold it, no two alike."""
        found: list[str] = []
        for number, part in enumerate(self.parts, start=1):
            words = _NO_PART_OF_A_NAME.sub("-", (part.token or part.scope).lower()).strip("-")
            ending = words or str(number)
            while ending in found:
                ending = f"{ending}-{number}"
            found.append(ending)
        return found
