"""Composed: what the model side needs of a composition, whoever made it.

The resolver's ``Composition`` fits, and so does what joint tuning returns; neither is imported
here, so drawing and learning stay apart from the storage side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cones_registry.layers import LayerTable
    from cones_registry.mask import ConceptMask
    from cones_registry.record import Concept, Scope


class ComposedPart(Protocol):
    """One mask of a composition and where it acts."""

    @property
    def mask(self) -> ConceptMask: ...
    @property
    def scope(self) -> Scope: ...
    @property
    def token(self) -> str | None: ...
    @property
    def class_noun(self) -> str | None: ...
    @property
    def refs(self) -> tuple[str, ...]: ...


class Drawable(Protocol):
    """Masks that act together on one base model; enough to draw with."""

    @property
    def base(self) -> str: ...
    @property
    def table(self) -> LayerTable: ...
    @property
    def parts(self) -> Sequence[ComposedPart]: ...


class ComposedMember(Protocol):
    """One concept of a composition."""

    @property
    def ref(self) -> str: ...
    @property
    def concept(self) -> Concept: ...


class Composed(Drawable, Protocol):
    """What ``registry.resolve`` gives: also what the masks were made of."""

    @property
    def digest(self) -> str: ...
    @property
    def members(self) -> Sequence[ComposedMember]: ...
