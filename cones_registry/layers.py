"""Layers of a base model: which weights a mask indexes into, and the fingerprint of their values.

Nothing here imports torch: a U-Net is read through `named_parameters()` or as a mapping alone.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from cones_registry.digest import Digest, quote, sha256_bytes
from cones_registry.errors import CorruptDataError, NotFoundError, UsageError
from cones_registry.families import refusal_of, text_layers

MAX_LAYERS: Final = 4096
MAX_NAME_LENGTH: Final = 300
MAX_LAYER_NEURONS: Final = 2**31 - 1
"""A neuron index is int32."""
MAX_NEURONS: Final = 2**31
"""Six times SDXL; a bitmap over this many neurons takes 256 MiB."""
WORD_BITS: Final = 64


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight that projects text to K or V, float [rows = out, cols = in].

    Raises:
        UsageError: the name is empty, too long or not printable, or the shape is not positive or
            has more neurons than an int32 index can address.
    """

    name: str
    rows: int
    cols: int

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= MAX_NAME_LENGTH:
            raise UsageError(
                f"a layer name must be 1 to {MAX_NAME_LENGTH} characters, got {quote(self.name)}"
            )
        if not self.name.isprintable():
            raise UsageError(f"a layer name must be printable, got {quote(self.name)}")
        for size in (self.rows, self.cols):
            if type(size) is not int or size < 1:
                raise UsageError(
                    f"layer {self.name!r} has shape ({self.rows!r}, {self.cols!r}); "
                    "both sides must be whole numbers of at least 1"
                )
        if self.rows * self.cols > MAX_LAYER_NEURONS:
            raise UsageError(
                f"layer {self.name!r} has {self.rows} x {self.cols} neurons; "
                f"an int32 index reaches {MAX_LAYER_NEURONS}"
            )

    @property
    def neuron_count(self) -> int:
        """Neurons of this layer: rows * cols."""
        return self.rows * self.cols

    @property
    def word_count(self) -> int:
        """64-bit words that hold one bit for every neuron of this layer."""
        return -(-self.neuron_count // WORD_BITS)

    @property
    def kind(self) -> Literal["k", "v"]:
        """`"k"` for a weight that gives K, `"v"` for one that gives V.

        Raises:
            UsageError: the name says neither.
        """
        parts = self.name.split(".")
        if "to_k" in parts or "add_k_proj" in parts:
            return "k"
        if "to_v" in parts or "add_v_proj" in parts:
            return "v"
        raise UsageError(
            f"layer {self.name!r} is neither a key nor a value weight: "
            "expected 'to_k', 'to_v', 'add_k_proj' or 'add_v_proj' in its name"
        )


@dataclass(frozen=True)
class LayerTable:
    """The ordered layers of one base model.

    The order is part of the identity: indices, words and factors of a mask follow it.

    Raises:
        UsageError: no layers, more than `MAX_LAYERS`, a name given twice, or more neurons in all
            than `MAX_NEURONS`.
    """

    layers: tuple[Layer, ...]

    def __repr__(self) -> str:
        return (
            f"LayerTable({len(self.layers)} layers, {self.neuron_count:,} neurons, "
            f"{self.layers[0].name} … {self.layers[-1].name})"
        )

    def __post_init__(self) -> None:
        if not 0 < len(self.layers) <= MAX_LAYERS:
            raise UsageError(f"a layer table has 1 to {MAX_LAYERS} layers, got {len(self.layers)}")
        seen: set[str] = set()
        for layer in self.layers:
            if layer.name in seen:
                raise UsageError(f"layer {layer.name!r} is named twice; names must be unique")
            seen.add(layer.name)
        if self.neuron_count > MAX_NEURONS:
            raise UsageError(
                f"the layers have {self.neuron_count} neurons in all; "
                f"at most {MAX_NEURONS} are supported"
            )

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, int]]) -> "LayerTable":
        """Table of `{name: (out, in)}`, in the mapping's order."""
        layers = []
        for name, shape in shapes.items():
            if len(shape) != 2:
                raise UsageError(
                    f"layer {quote(name)} has shape {tuple(shape)!r}; expected (out, in)"
                )
            layers.append(Layer(name, int(shape[0]), int(shape[1])))
        return cls(tuple(layers))

    @classmethod
    def from_unet(cls, unet: Any) -> "LayerTable":
        """Table of a denoiser's weights that project text to K and V, in state-dict order.

        Works on any diffusers U-Net and on the transformers of `families.FAMILIES`, also on the
        meta device: only names and shapes are read. A state dict or any other mapping of name to
        something with a `.shape` does as well.

        Where the model has a `config.cross_attention_dim`, a layer called `attn2` counts only if
        its input has that width: one that attends to the image (`double_self_attention`) is left
        out.

        Raises:
            UsageError: nothing that looks like a denoiser, one whose text is not known to be
                projected apart, or one of a family that is refused.
        """
        named = dict(_named_shapes(unet))
        unet = getattr(unet, "_orig_mod", unet)
        kind = type(unet).__name__
        refusal = refusal_of(kind)
        if refusal is not None:
            raise UsageError(f"{refusal}. schema/models.md lists the models that are supported")
        widths = _cross_attention_widths(unet)
        layers = text_layers(kind, named)
        shapes: dict[str, tuple[int, int]] = {}
        for name, shape in named.items():
            if len(shape) != 2 or not any(each.kind_of(name) for each in layers):
                continue
            if not widths or shape[1] in widths:
                shapes[name] = (shape[0], shape[1])
        if not shapes:
            raise UsageError(
                f"{kind} has no cross-attention that is known here: expected weights named "
                "'…attn2.to_k.weight' and '…attn2.to_v.weight', or '…attn.add_k_proj.weight'. Give "
                "the U-Net or the transformer of a text-to-image pipeline, without LoRA layers "
                "attached"
            )
        return cls.from_shapes(shapes)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Layer names in order."""
        return tuple(layer.name for layer in self.layers)

    @cached_property
    def neuron_count(self) -> int:
        """Neurons of all layers."""
        return sum(layer.neuron_count for layer in self.layers)

    def count_within(self, density: float) -> int:
        """The most neurons whose share of all is at most ``density``."""
        # The float nearest to a share may lie a hair under it: 0.29 * 100 is 28.999…
        return math.floor(density * self.neuron_count + 1e-6)

    @cached_property
    def word_count(self) -> int:
        """Words of a packed bitmap over the table; every layer starts on a word boundary."""
        return sum(layer.word_count for layer in self.layers)

    @cached_property
    def word_starts(self) -> tuple[int, ...]:
        """First word of each layer in the packed bitmap, in layer order."""
        starts = [0]
        for layer in self.layers[:-1]:
            starts.append(starts[-1] + layer.word_count)
        return tuple(starts)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.names)}

    def position(self, name: str) -> int:
        """Position of the layer called `name`; `NotFoundError` if there is none."""
        try:
            return self._positions[name]
        except (KeyError, TypeError):
            raise NotFoundError(
                f"no layer {quote(name)} in this table of {len(self.layers)} layers; "
                f"the first is {self.names[0]!r}. `table.names` lists all"
            ) from None

    def layer(self, name: str) -> Layer:
        """The layer called `name`; `NotFoundError` if there is none."""
        return self.layers[self.position(name)]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    @cached_property
    def digest(self) -> Digest:
        """SHA-256 of the ordered names and shapes; tables with one digest share an index space."""
        text = json.dumps(self.to_json()["layers"], ensure_ascii=True, separators=(",", ":"))
        return sha256_bytes(b"cones layer table 1\n" + text.encode("ascii"))

    def to_json(self) -> dict[str, Any]:
        """`{"layers": [[name, rows, cols], …]}`, ready for `json.dumps`."""
        return {"layers": [[layer.name, layer.rows, layer.cols] for layer in self.layers]}

    @classmethod
    def from_json(cls, value: Any) -> "LayerTable":
        """Inverse of `to_json`; `CorruptDataError` for anything else."""
        if not isinstance(value, dict) or not isinstance(value.get("layers"), list):
            raise CorruptDataError(
                f"a layer table must be an object with a list 'layers', got {quote(value)}"
            )
        entries = value["layers"]
        if len(entries) > MAX_LAYERS:
            raise CorruptDataError(
                f"a layer table has at most {MAX_LAYERS} layers, got {len(entries)}"
            )
        for entry in entries:
            if not isinstance(entry, list) or len(entry) != 3:
                raise CorruptDataError(
                    f"a layer must be written [name, rows, cols], got {quote(entry)}"
                )
        return cls.parse(entries)

    @classmethod
    def parse(cls, entries: Iterable[Iterable[Any]]) -> "LayerTable":
        """Table of `(name, rows, cols)` entries of a file; `CorruptDataError` if they are bad."""
        try:
            return cls(tuple(Layer(*entry) for entry in entries))
        except UsageError as error:
            raise CorruptDataError(f"bad layer table: {error}") from error


def fingerprint(table: LayerTable, arrays: Callable[[str], npt.NDArray[Any]]) -> Digest:
    """Identity of a base model: SHA-256 over layer names, shapes and values rounded to float16.

    Rounding makes the float32 and the float16 release of the same weights one base model.

    Args:
        table: the layers, in order.
        arrays: layer name -> its weight, float16/float32/float64 [out, in].

    Raises:
        UsageError: an array has another shape or type than its layer, or holds NaN.
    """
    hasher = hashlib.sha256(b"cones base model 1\n" + table.digest.encode("ascii") + b"\n")
    for layer in table.layers:
        values = np.asarray(arrays(layer.name))
        if values.shape != (layer.rows, layer.cols) or values.dtype.kind != "f":
            raise UsageError(
                f"layer {layer.name!r} gave {values.dtype} {values.shape}; "
                f"expected a float array of shape ({layer.rows}, {layer.cols})"
            )
        # A value beyond float16 becomes infinity here exactly as it does in a float16 release.
        with np.errstate(over="ignore"):
            rounded = np.ascontiguousarray(values, dtype="<f2")
        if np.isnan(rounded).any():
            raise UsageError(
                f"layer {layer.name!r} holds NaN, so the base model has no fingerprint. "
                "Load the published weights again"
            )
        hasher.update(rounded.tobytes())
    return "sha256:" + hasher.hexdigest()


def _named_shapes(unet: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every parameter, in state-dict order."""
    if isinstance(unet, Mapping):
        items: Iterable[tuple[str, Any]] = unet.items()
    elif callable(getattr(unet, "named_parameters", None)):
        # torch.compile wraps the model and prefixes every name.
        unet = getattr(unet, "_orig_mod", unet)
        items = unet.named_parameters()
    else:
        raise UsageError(
            f"expected a torch module or a state dict, got {type(unet).__name__}. "
            "Give `pipeline.unet` (or `pipeline.transformer`), not the pipeline"
        )
    for name, value in items:
        yield name, tuple(int(size) for size in value.shape)


def _cross_attention_widths(unet: Any) -> frozenset[int]:
    """Input widths that the model's config gives for cross-attention; empty if it gives none."""
    config = getattr(unet, "config", None)
    width = getattr(config, "cross_attention_dim", None)

    def flatten(value: Any) -> Iterator[int]:
        if isinstance(value, int):
            yield value
        elif isinstance(value, list | tuple):
            for part in value:
                yield from flatten(part)

    return frozenset(flatten(width))


def short_layer_name(name: str) -> str:
    """The part of a layer's path that tells layers apart."""
    kept = [
        part
        for part in name.split(".")
        if part not in ("attentions", "transformer_blocks", "attn2", "weight")
    ]
    return ".".join(kept)
