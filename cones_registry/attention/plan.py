"""From requests with masks to row edits of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

import torch

from cones_registry.attention.rows import RowEdit
from cones_registry.attention.weights import MaskedWeights
from cones_registry.errors import UsageError

if TYPE_CHECKING:
    from cones_registry.mask import ConceptMask


@dataclass(frozen=True)
class MaskedPart:
    """One mask and the rows of one prompt it acts on.

    rows: bool [T]; None means every row (scope ``prompt``).
    """

    mask: ConceptMask
    rows: torch.Tensor | None = None


@dataclass(frozen=True)
class RequestParts:
    """The masked parts of one batch entry (one prompt: conditional or unconditional)."""

    parts: tuple[MaskedPart, ...] = ()


def plan_rows(entries: Sequence[RequestParts], token_count: int) -> list[RowEdit]:
    """Row edits of a batch: B entries of T = ``token_count`` rows.

    Rows under the same set of masks, wherever they are in the batch, become one edit, so each
    masked weight is made once. A row under several masks sees the product of their factors.
    The edits do not overlap. Raises UsageError if rows have another length than T.
    """
    masks: dict[str, ConceptMask] = {}
    rows: dict[tuple[str, ...], torch.Tensor] = {}
    for number, entry in enumerate(entries):
        for digests, where in _groups(entry, token_count, masks):
            batch = rows.setdefault(
                digests, torch.zeros(len(entries), token_count, dtype=torch.bool)
            )
            batch[number] |= where
    return [
        RowEdit(MaskedWeights(reduce(or_, [masks[digest] for digest in digests])), where)
        for digests, where in rows.items()
    ]


def _groups(
    entry: RequestParts, token_count: int, masks: dict[str, ConceptMask]
) -> Iterable[tuple[tuple[str, ...], torch.Tensor]]:
    """The rows of one entry grouped by the masks that act on them."""
    acting: dict[str, torch.Tensor] = {}
    for part in entry.parts:
        if len(part.mask) == 0:
            continue
        everywhere = torch.ones(token_count, dtype=torch.bool)
        where = everywhere if part.rows is None else part.rows
        if tuple(where.shape) != (token_count,):
            raise UsageError(
                f"rows of a part have shape {tuple(where.shape)}, the prompt has {token_count} rows"
            )
        digest = part.mask.digest
        masks[digest] = part.mask
        acting[digest] = acting[digest] | where if digest in acting else where
    digests = sorted(acting)
    if not digests:
        return
    membership = torch.stack([acting[digest] for digest in digests])  # [masks, T]
    for pattern in torch.unique(membership, dim=1).T:
        if pattern.any():
            chosen = tuple(d for d, member in zip(digests, pattern.tolist(), strict=True) if member)
            yield chosen, (membership == pattern[:, None]).all(dim=0)
