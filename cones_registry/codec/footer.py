"""The footer: one JSON object under the Parquet key `cones` that says what the file holds.

Long values of its `concept` (a provenance with its history, above all) would often be longer than
the mask. They stand under a second key, compressed.
"""

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import zstandard

from cones_registry.digest import Digest, parse_digest, quote
from cones_registry.errors import CorruptDataError, UsageError
from cones_registry.factors import PRECISIONS, Precision
from cones_registry.layers import MAX_NEURONS

FORMAT: Final = 1
"""Version of the file format. It goes up when a reader of before could misread a file."""
FOOTER_KEY: Final = b"cones"
LONG_KEY: Final = b"cones-long"
"""Values of `concept` of more than `LONG_VALUE` bytes of JSON: base64 of a zstd frame of JSON."""
LONG_VALUE: Final = 512
_LONG_LEVEL: Final = 19
MAX_FOOTER_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Footer:
    """What a mask file says about itself.

    Attributes:
        layout: how the members are written: "gap8", "plain", …
        precision: "binary", "2bit", "float16" or "float32".
        layer_table_digest, mask_digest: identity of the layer table and of the mask.
        table_neuron_count: neurons of the layer table.
        neuron_count: members of the mask.
        layer_table: `[[name, rows, cols, members], …]` where no column says it, else None.
        concept: whatever the writer wants kept beside the mask; a registry puts the whole record
            of the concept here, so that a catalog can be rebuilt from the files alone.
    """

    layout: str
    precision: Precision
    layer_table_digest: Digest
    mask_digest: Digest
    table_neuron_count: int
    neuron_count: int
    layer_table: list[Any] | None = None
    concept: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The object that is written under the key `cones`."""
        value: dict[str, Any] = {
            "format": FORMAT,
            "layout": self.layout,
            "precision": self.precision,
            "layer_table_digest": self.layer_table_digest,
            "mask_digest": self.mask_digest,
            "table_neuron_count": self.table_neuron_count,
            "neuron_count": self.neuron_count,
        }
        if self.layer_table is not None:
            value["layer_table"] = self.layer_table
        if self.concept is not None:
            value["concept"] = dict(self.concept)
        return value

    def to_metadata(self) -> dict[bytes, bytes]:
        """Parquet key -> UTF-8 text; `UsageError` if `concept` is not JSON or is too large."""
        value = self.to_json()
        whole = _dump(value)
        if len(whole) > MAX_FOOTER_BYTES:
            raise UsageError(
                f"the footer takes {len(whole)} bytes; at most {MAX_FOOTER_BYTES} are allowed. "
                "Shorten the provenance (its history, most likely)"
            )
        long = {
            key: item for key, item in (self.concept or {}).items() if len(_dump(item)) > LONG_VALUE
        }
        if not long:
            return {FOOTER_KEY: whole}
        for key in long:
            del value["concept"][key]
        packed = zstandard.ZstdCompressor(level=_LONG_LEVEL).compress(_dump(long))
        return {FOOTER_KEY: _dump(value), LONG_KEY: base64.b64encode(packed)}

    @classmethod
    def parse(cls, data: bytes, long: bytes | None = None) -> "Footer":
        """Parse and check what a file says about itself.

        Args:
            data: what stands under `FOOTER_KEY`.
            long: what stands under `LONG_KEY`, if anything does.

        Raises:
            CorruptDataError: not JSON, a newer format, or a value that cannot be.
        """
        if len(data) > MAX_FOOTER_BYTES:
            raise CorruptDataError(
                f"the footer takes {len(data)} bytes; at most {MAX_FOOTER_BYTES} are read"
            )
        try:
            value = _load(data)
        except (ValueError, RecursionError) as error:
            raise CorruptDataError(f"the footer is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise CorruptDataError(f"the footer must be a JSON object, got {quote(value)}")
        version = _integer(value, "format", 1, 2**31)
        if version > FORMAT:
            raise CorruptDataError(
                f"this file is written in format {version}; this version reads format {FORMAT}. "
                "Upgrade cones-registry"
            )
        if value.get("precision") not in PRECISIONS:
            raise CorruptDataError(
                f"precision is {quote(value.get('precision'))}; "
                f"expected one of {', '.join(PRECISIONS)}"
            )
        layout, layer_table, concept = (
            value.get(key) for key in ("layout", "layer_table", "concept")
        )
        if not isinstance(layout, str):
            raise CorruptDataError(f"layout is {quote(layout)}; expected text")
        if layer_table is not None and not isinstance(layer_table, list):
            raise CorruptDataError(f"layer_table is {quote(layer_table)}; expected a list")
        if concept is not None and not isinstance(concept, dict):
            raise CorruptDataError(f"concept is {quote(concept)}; expected an object")
        if long is not None:
            concept = (concept or {}) | _unpack_long(long)
        table_neuron_count = _integer(value, "table_neuron_count", 1, MAX_NEURONS)
        return cls(
            layout=layout,
            precision=value["precision"],
            layer_table_digest=_digest(value, "layer_table_digest"),
            mask_digest=_digest(value, "mask_digest"),
            table_neuron_count=table_neuron_count,
            neuron_count=_integer(value, "neuron_count", 0, table_neuron_count),
            layer_table=layer_table,
            concept=concept,
        )


def _dump(value: Any) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"the footer must hold only JSON values: {error}. "
            "Use text, finite numbers, true, false, null, lists and objects"
        ) from error


def _unpack_long(data: bytes) -> dict[str, Any]:
    try:
        packed = base64.b64decode(data, validate=True)
        # Without a size in its head a frame says -1, and nobody knows what it comes to.
        size = zstandard.frame_content_size(packed)
        text = (
            zstandard.ZstdDecompressor().decompress(packed)
            if 0 <= size <= MAX_FOOTER_BYTES
            else b""
        )
        value = _load(text)
    except (binascii.Error, zstandard.ZstdError, ValueError, RecursionError) as error:
        raise CorruptDataError(f"the long values of the footer are damaged: {error}") from error
    if not isinstance(value, dict):
        raise CorruptDataError(f"the long values of the footer are {quote(value)}, not an object")
    return value


def _load(text: bytes) -> Any:
    """JSON proper: Python alone reads NaN and Infinity, and gives the latter for 1e999 too.

    Raises:
        ValueError: not JSON, or a number that no float holds.
    """
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number of JSON")
    return number


def _integer(value: dict[str, Any], key: str, low: int, high: int) -> int:
    number = value.get(key)
    if type(number) is not int or not low <= number <= high:
        raise CorruptDataError(f"{key} is {quote(number)}; expected {low} to {high}")
    return number


def _digest(value: dict[str, Any], key: str) -> Digest:
    try:
        return parse_digest(value.get(key, ""))
    except UsageError as error:
        raise CorruptDataError(f"{key}: {error}") from error
