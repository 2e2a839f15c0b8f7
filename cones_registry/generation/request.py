"""What is asked for: one prompt, one seed, and the concepts that act on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cones_registry.errors import BaseModelMismatchError, UsageError
from cones_registry.seed import MAX_SEED

if TYPE_CHECKING:
    from cones_registry.attention.composed import Drawable
    from cones_registry.base_model import BaseModel
    from cones_registry.mask import ConceptMask


@dataclass(frozen=True)
class Request:
    """One picture.

    prompt: what to draw.
    mask: neurons to shut at every row of the prompt (scope ``prompt``).
    composition: what ``registry.resolve`` returned; either this or ``mask`` or neither.
    seed: 0 ≤ seed < 2**63; the noise comes from a CPU generator of this seed alone, so the same
        request starts from the same noise on every device and at every place in a batch.
    negative_prompt: what guidance moves away from.
    Raises UsageError for a prompt that is no text, a seed out of range, or both a mask and a
    composition.
    """

    prompt: str
    mask: ConceptMask | None = field(default=None, kw_only=True)
    composition: Drawable | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    negative_prompt: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not isinstance(self.negative_prompt, str):
            raise UsageError(
                f"prompt {self.prompt!r} and negative prompt {self.negative_prompt!r} must be text"
            )
        for text in (self.prompt, self.negative_prompt):
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise UsageError(f"prompt {text!r} is not valid Unicode text (a lone surrogate)")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise UsageError(f"seed {self.seed!r} is no whole number")
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"seed {self.seed} is out of range. Expected 0 … {MAX_SEED}")
        if self.mask is not None and self.composition is not None:
            raise UsageError(
                "a request has either a mask or a composition, not both. Resolve all concepts "
                "together: registry.resolve('a', 'b')"
            )


def check_base(request: Request, base: BaseModel) -> None:
    """Raise BaseModelMismatchError unless everything in ``request`` was made for ``base``."""
    table = base.layer_table
    if request.mask is not None and request.mask.table.digest != table.digest:
        raise BaseModelMismatchError(
            f"the mask for prompt {request.prompt!r} indexes into layer table "
            f"{request.mask.table.digest}, base model {base.source!r} has {table.digest}. "
            "Load the base model the concept was made for"
        )
    composition = request.composition
    if composition is None:
        return
    names = ", ".join(sorted({ref for part in composition.parts for ref in part.refs})) or "(empty)"
    if composition.table.digest != table.digest or any(
        part.mask.table.digest != table.digest for part in composition.parts
    ):
        raise BaseModelMismatchError(
            f"composition of {names} indexes into layer table {composition.table.digest}, base "
            f"model {base.source!r} has {table.digest}. Load the base model it was made for"
        )
    if composition.base not in (base.fingerprint, table.digest):
        raise BaseModelMismatchError(
            f"composition of {names} was made for base model {composition.base}, this is "
            f"{base.fingerprint} ({base.source}). The shapes agree, the weights do not: a mask "
            "means nothing on other weights. Load the base model it was made for"
        )
