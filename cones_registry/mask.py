"""ConceptMask: the set of neurons a concept shuts, and what each is multiplied by.

Everything that learns a concept makes one of these, everything that draws uses one, and storage
keeps it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cones_registry import bitmap
from cones_registry.bitmap import Words
from cones_registry.digest import Digest
from cones_registry.errors import BaseModelMismatchError, UsageError
from cones_registry.factors import Factors, Precision, finer, round_factors
from cones_registry.layers import LayerTable
from cones_registry.packing import join_factors, pack_flags, pack_indices, reject_padding


@dataclass(frozen=True, eq=False, repr=False)
class ConceptMask:
    """An immutable set of neurons of one layer table. Member = shut.

    Attributes:
        table: the layers it indexes into.
        words: uint64 [table.word_count], read-only. Bit i of a layer's run of words is the neuron
            with row-major index i; every layer starts on a word boundary.
        factors: what each member is multiplied by, float16 or float32 [n], read-only, in table
            order, then index order; None in a binary mask, where every member is multiplied by 0.
        precision: how exactly factors are kept: "binary", "2bit", "float16" or "float32".

    A mask whose factors are all 0 is binary: it is the same mask, however it was made.

    Raises:
        UsageError: words or factors of the wrong type or length, bits beyond a layer's last neuron,
            factors that are not finite or that the precision cannot hold.
    """

    table: LayerTable
    words: Words
    factors: Factors | None = None
    precision: Precision = "binary"

    def __post_init__(self) -> None:
        table, words = self.table, self.words
        if words.dtype != np.uint64 or words.shape != (table.word_count,):
            raise UsageError(
                f"words must be uint64 of shape ({table.word_count},), "
                f"got {words.dtype} {words.shape}"
            )
        words = words.copy()
        reject_padding(table, words)
        self._set(table, words, self.factors, self.precision)

    def _set(
        self,
        table: LayerTable,
        words: Words,
        factors: npt.NDArray[Any] | None,
        precision: Precision | None,
    ) -> None:
        count = 0 if factors is None else bitmap.popcount(words)
        factors, precision = round_factors(factors, count, precision)
        words.flags.writeable = False
        if factors is not None:
            factors.flags.writeable = False
        values = {"table": table, "words": words, "factors": factors, "precision": precision}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def trusted(
        cls,
        table: LayerTable,
        words: Words,
        factors: npt.NDArray[Any] | None = None,
        precision: Precision | None = None,
    ) -> "ConceptMask":
        """A mask that takes `words` over without copying or checking them; factors are checked."""
        mask = cls.__new__(cls)
        mask._set(table, words, factors, precision)
        return mask

    def __reduce__(self) -> tuple[Any, ...]:
        # Arrays come out of a pickle writable; going through `trusted` makes them read-only again.
        return ConceptMask.trusted, (self.table, self.words, self.factors, self.precision)

    # -- making one ---------------------------------------------------------------------------

    @classmethod
    def empty(cls, table: LayerTable) -> "ConceptMask":
        """The mask that shuts nothing."""
        return cls.trusted(table, np.zeros(table.word_count, dtype=np.uint64))

    @classmethod
    def from_indices(
        cls,
        table: LayerTable,
        indices: Mapping[str, npt.NDArray[Any]],
        factors: Mapping[str, npt.NDArray[Any]] | None = None,
        *,
        precision: Precision | None = None,
    ) -> "ConceptMask":
        """Mask of the given neurons; a layer that is not named has none.

        Args:
            table: the layers.
            indices: layer name -> row-major neuron indices, integer [n], strictly increasing.
            factors: layer name -> what each of those neurons is multiplied by, float [n]. Layers
                left out are multiplied by 0. None: a binary mask.
            precision: what factors are rounded to; by default "float16" if all are float16, else
                "float32".

        Raises:
            NotFoundError: a layer that is not in the table.
            UsageError: indices that are unsorted, repeated, out of range or not integers; factors
                of another length, not finite, or outside [0, 1] for "2bit".
        """
        words = pack_indices(table, indices)
        values = None if factors is None else join_factors(table, indices, factors)
        return cls.trusted(table, words, values, precision)

    @classmethod
    def from_dense(
        cls, arrays: Mapping[str, npt.NDArray[np.bool_]], *, table: LayerTable | None = None
    ) -> "ConceptMask":
        """Binary mask of `{layer: bool[out, in]}`, True = shut.

        Without `table` the arrays are the table, in the mapping's order; with it, a layer that is
        not named has no members.

        Raises:
            NotFoundError: a layer that is not in the table.
            UsageError: an array that is not bool or has another shape than its layer.
        """
        if table is None:
            table = LayerTable.from_shapes({k: np.shape(v) for k, v in arrays.items()})
        return cls.trusted(table, pack_flags(table, arrays))

    # -- looking into one ---------------------------------------------------------------------

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Members of each layer, int64 [layers], in table order."""
        counts = bitmap.popcounts(self.words, self.table.word_starts)
        counts.flags.writeable = False
        return counts

    def __len__(self) -> int:
        return int(self.counts.sum())

    def count(self, layer: str) -> int:
        """Members of one layer."""
        return int(self.counts[self.table.position(layer)])

    @property
    def density(self) -> float:
        """Members / neurons in the layer table, in [0, 1]."""
        return len(self) / self.table.neuron_count

    def layer_words(self, layer: str) -> Words:
        """Packed bits of one layer, uint64, read-only view."""
        position = self.table.position(layer)
        start = self.table.word_starts[position]
        return self.words[start : start + self.table.layers[position].word_count]

    def indices(self, layer: str) -> npt.NDArray[np.int32]:
        """Row-major indices of the members of one layer, int32 [n], strictly increasing."""
        return bitmap.unpack_positions(self.layer_words(layer)).astype(np.int32)

    def layer_factors(self, layer: str) -> Factors:
        """What the members of one layer are multiplied by, float [n], in the order of `indices`."""
        position = self.table.position(layer)
        if self.factors is None:
            return np.zeros(int(self.counts[position]), dtype=np.float32)
        start = int(self.counts[:position].sum())
        return self.factors[start : start + int(self.counts[position])]

    def to_dense(self, layer: str) -> npt.NDArray[np.bool_]:
        """Members of one layer as bool [out, in], True = shut."""
        shape = self.table.layer(layer)
        flags = bitmap.unpack_dense(self.layer_words(layer), shape.neuron_count)
        return flags.reshape(shape.rows, shape.cols)

    def multiplier(self, layer: str) -> npt.NDArray[np.float32]:
        """What one layer's weight is multiplied by, float32 [out, in]: 1, or a member's factor."""
        shape = self.table.layer(layer)
        if self.factors is None:
            return np.subtract(1, self.to_dense(layer), dtype=np.float32)
        flat = np.ones(shape.neuron_count, dtype=np.float32)
        flat[self.indices(layer)] = self.layer_factors(layer)
        return flat.reshape(shape.rows, shape.cols)

    def __repr__(self) -> str:
        return (
            f"ConceptMask({len(self)} of {self.table.neuron_count} neurons in "
            f"{len(self.table)} layers, {self.precision}, density {self.density:.3%})"
        )

    # -- identity -----------------------------------------------------------------------------

    @cached_property
    def digest(self) -> Digest:
        """SHA-256 of the logical content: layer table, members, and factors as float32.

        It does not depend on encoding, nor on the precision as such: two masks with equal members
        and equal factor values are one mask, whether kept as float16 or float32.
        """
        hasher = hashlib.sha256(b"cones mask 1\n" + self.table.digest.encode("ascii") + b"\n")
        hasher.update(self.words.astype("<u8", copy=False).data)
        if self.factors is not None:
            hasher.update(b"\nfactors\n")
            hasher.update(self.factors.astype("<f4").data)
        return "sha256:" + hasher.hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ConceptMask):
            return NotImplemented
        if self.table != other.table or not np.array_equal(self.words, other.words):
            return False
        if self.factors is None or other.factors is None:
            return self.factors is other.factors
        return bool(np.array_equal(self.factors, other.factors))

    def __hash__(self) -> int:
        return hash(self.digest)

    # -- algebra ------------------------------------------------------------------------------

    def __or__(self, other: "ConceptMask") -> "ConceptMask":
        """Composition: union of the members; factors multiply, so a binary member stays shut."""
        if not isinstance(other, ConceptMask):
            return NotImplemented
        self._require_same_table(other)
        words = self.words | other.words
        if self.factors is None and other.factors is None:
            return ConceptMask.trusted(self.table, words)
        members = bitmap.unpack_positions(words)
        product = np.ones(members.size, dtype=np.float32)
        # A product beyond float32 becomes infinite, which no mask accepts.
        with np.errstate(over="ignore"):
            for mask in (self, other):
                factors = 0 if mask.factors is None else mask.factors
                product[bitmap.contains(mask.words, members)] *= factors
        # The product of two graded factors needs more digits than either has.
        both = self.factors is not None and other.factors is not None
        precision = "float32" if both else finer(self.precision, other.precision)
        return ConceptMask.trusted(self.table, words, product, precision)

    def __and__(self, other: "ConceptMask") -> "ConceptMask":
        """Members of both; of two factors the larger, which is what both agree on shutting."""
        if not isinstance(other, ConceptMask):
            return NotImplemented
        self._require_same_table(other)
        words = self.words & other.words
        if self.factors is None and other.factors is None:
            return ConceptMask.trusted(self.table, words)
        larger = np.maximum(self._factors_at(words), other._factors_at(words))
        return ConceptMask.trusted(
            self.table, words, larger, finer(self.precision, other.precision)
        )

    def __sub__(self, other: "ConceptMask") -> "ConceptMask":
        """Members of the left mask that the right one does not have, with their factors."""
        if not isinstance(other, ConceptMask):
            return NotImplemented
        self._require_same_table(other)
        words = self.words & ~other.words
        if self.factors is None:
            return ConceptMask.trusted(self.table, words)
        return ConceptMask.trusted(self.table, words, self._factors_at(words), self.precision)

    def jaccard(self, other: "ConceptMask") -> float:
        """|a & b| / |a | b| over the members, in [0, 1]; 1.0 for two empty masks."""
        self._require_same_table(other)
        union = bitmap.popcount(self.words | other.words)
        return bitmap.popcount(self.words & other.words) / union if union else 1.0

    def _factors_at(self, words: Words) -> npt.NDArray[np.float32]:
        """Factors of those members that are in `words`, a subset of this mask, float32 [n]."""
        if self.factors is None:
            return np.zeros(bitmap.popcount(words), dtype=np.float32)
        members = bitmap.unpack_positions(self.words)
        return self.factors[bitmap.contains(words, members)].astype(np.float32)

    def _require_same_table(self, other: "ConceptMask") -> None:
        if self.table != other.table:
            raise BaseModelMismatchError(
                f"cannot combine a mask over layer table {self.table.digest[:19]}… "
                f"({self.table.neuron_count} neurons) with one over {other.table.digest[:19]}… "
                f"({other.table.neuron_count} neurons). Concepts combine only on one base model"
            )
