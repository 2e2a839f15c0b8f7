"""Masks as bytes: one Parquet file a mask, readable by any Parquet reader (schema/mask.md)."""

import contextlib
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cones_registry.codec.class_ import Class, fits_classes
from cones_registry.codec.container import Container, write_container
from cones_registry.codec.crowding import crowding_bits
from cones_registry.codec.footer import FORMAT, Footer
from cones_registry.codec.gap8 import Gap8
from cones_registry.codec.layout import Indices, Layout
from cones_registry.codec.plain import Plain
from cones_registry.codec.ranks import rank_columns, read_rank_columns
from cones_registry.digest import quote
from cones_registry.errors import CorruptDataError, NotFoundError, StoreUnavailableError, UsageError
from cones_registry.mask import ConceptMask
from cones_registry.ranking import Ranks

__all__ = [
    "FORMAT",
    "LAYOUTS",
    "decode",
    "decode_indices",
    "decode_layer",
    "encode",
    "encode_smallest",
    "load_file",
    "read_counts",
    "read_footer",
    "read_ranks",
    "save_file",
]

LAYOUTS: Final[dict[str, Layout]] = {each.name: each for each in (Class(), Gap8(), Plain())}
"""Name -> layout."""
SMALLEST: Final = "smallest"
_TOO_SMALL_FOR_CLASSES: Final = 4096
"""Bytes of a file in layout `gap8` below which the tables of `class` cannot pay for themselves."""
_TOO_EVEN: Final = 0.02
"""Share of a file in layout `gap8` that crowding must save: below it `class` was never smaller, and
trying it takes ten times as long as `gap8` itself."""


def encode(
    mask: ConceptMask,
    *,
    layout: str = SMALLEST,
    footer: Mapping[str, Any] | None = None,
    ranks: Ranks | None = None,
) -> bytes:
    """Write a mask as the bytes of a Parquet file.

    Args:
        mask: the mask.
        layout: "gap8", quick; "class", small where members crowd in some rows and columns; "plain",
            for SQL without a decoder; or "smallest": "gap8" or "class", whichever takes fewer
            bytes for this mask.
        footer: JSON object kept in the file's footer under `concept`, for whoever finds the file
            alone.
        ranks: how the members compare, if that is to be kept (`ranking.ranks_of`).

    Raises:
        UsageError: an unknown layout, layers too large for "class", or a footer that is not JSON.
    """
    if layout == SMALLEST:
        return encode_smallest(mask, footer=footer, ranks=ranks)[1]
    if layout not in LAYOUTS:
        raise UsageError(
            f"no layout {quote(layout)}; choose {SMALLEST} or one of {', '.join(LAYOUTS)}"
        )
    return _encode(mask, LAYOUTS[layout], footer, ranks)


def encode_smallest(
    mask: ConceptMask, *, footer: Mapping[str, Any] | None = None, ranks: Ranks | None = None
) -> tuple[str, bytes]:
    """(name of the layout that takes fewest bytes, the file); arguments as `encode`."""
    data = _encode(mask, LAYOUTS["gap8"], footer, ranks)
    if len(data) < _TOO_SMALL_FOR_CLASSES or not fits_classes(mask.table):
        return "gap8", data
    if crowding_bits(mask) < _TOO_EVEN * 8 * len(data):
        return "gap8", data
    other = _encode(mask, LAYOUTS["class"], footer, ranks)
    return ("class", other) if len(other) < len(data) else ("gap8", data)


def decode(data: bytes | bytearray | memoryview, *, verify: bool = True) -> ConceptMask:
    """Read a mask from the bytes of a file.

    Args:
        data: the whole file.
        verify: compare the mask with the digest in the footer. Skip it only where all bytes were
            checked against a digest before; bounds and page checksums are always checked.

    Raises:
        CorruptDataError: damaged or hostile bytes, an unknown layout, or a newer format.
    """
    container = Container(data)
    layout = _layout(container)
    mask = layout.decode(container, layout.contents(container))
    if verify and mask.digest != container.footer.mask_digest:
        raise CorruptDataError(
            f"the file holds mask {mask.digest}, but its footer says "
            f"{container.footer.mask_digest}. Fetch it again"
        )
    return mask


def read_footer(data: bytes | bytearray | memoryview) -> dict[str, Any]:
    """What a file says about itself, without reading its columns; raises as `decode` does."""
    container = Container(data)
    _layout(container)
    return container.footer.to_json()


def read_counts(data: bytes | bytearray | memoryview) -> dict[str, int]:
    """Members of each layer, without decoding any; raises as `decode` does."""
    container = Container(data)
    contents = _layout(container).contents(container)
    return dict(zip(contents.table.names, contents.counts.tolist(), strict=True))


def decode_indices(
    data: bytes | bytearray | memoryview, layers: Sequence[str] | None = None
) -> dict[str, Indices]:
    """Indices of members, int32 [n] a layer, strictly increasing, without the mask in between.

    Args:
        data: the whole file.
        layers: their names; None: all. The others are not decoded.

    Raises:
        CorruptDataError: as `decode`; the digest of the mask is not compared.
        NotFoundError: the file has no such layer.
    """
    container = Container(data)
    layout = _layout(container)
    contents = layout.contents(container)
    names = contents.table.names if layers is None else tuple(layers)
    positions = [contents.table.position(name) for name in names]
    return dict(zip(names, layout.decode_indices(container, contents, positions), strict=True))


def decode_layer(data: bytes | bytearray | memoryview, layer: str) -> Indices:
    """Indices of the members of one layer, as `decode_indices`."""
    return decode_indices(data, [layer])[layer]


def read_ranks(data: bytes | bytearray | memoryview) -> Ranks | None:
    """How the members compare, uint8 [n]; None where the file does not say; raises as `decode`."""
    container = Container(data)
    return read_rank_columns(container, _layout(container).contents(container))


def save_file(
    mask: ConceptMask,
    path: str | os.PathLike[str],
    *,
    layout: str = SMALLEST,
    footer: Mapping[str, Any] | None = None,
    ranks: Ranks | None = None,
) -> None:
    """Write a mask to `path`, whole or not at all; arguments as `encode`.

    Raises:
        NotFoundError: the folder does not exist.
        StoreUnavailableError: the disk refused.
    """
    target = Path(path)
    data = encode(mask, layout=layout, footer=footer, ranks=ranks)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    except FileNotFoundError as error:
        raise NotFoundError(f"no folder {str(target.parent)!r}. Create it first") from error
    except OSError as error:
        raise StoreUnavailableError(f"cannot write {str(target)!r}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):  # where nothing could be written nothing is left
            temporary.unlink()


def load_file(path: str | os.PathLike[str]) -> ConceptMask:
    """Read a mask from `path`.

    Raises:
        NotFoundError: no such file.
        StoreUnavailableError: the disk refused.
        CorruptDataError: as `decode`.
    """
    source = Path(path)
    try:
        data = source.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(
            f"no file {str(source)!r}. Name a file that `cones extract --out` wrote"
        ) from error
    except OSError as error:
        raise StoreUnavailableError(f"cannot read {str(source)!r}: {error.strerror}") from error
    try:
        return decode(data)
    except CorruptDataError as error:
        raise CorruptDataError(f"{str(source)!r}: {error}") from error


def _encode(
    mask: ConceptMask, layout: Layout, concept: Mapping[str, Any] | None, ranks: Ranks | None
) -> bytes:
    footer = Footer(
        layout=layout.name,
        precision=mask.precision,
        layer_table_digest=mask.table.digest,
        mask_digest=mask.digest,
        table_neuron_count=mask.table.neuron_count,
        neuron_count=len(mask),
        layer_table=layout.layer_table(mask),
        concept=concept,
    )
    columns = layout.columns(mask)
    if ranks is not None:
        columns |= rank_columns(mask, ranks, by_row=layout.name == Plain.name)
    return write_container(columns, footer)


def _layout(container: Container) -> Layout:
    name = container.footer.layout
    if name not in LAYOUTS:
        raise CorruptDataError(
            f"this file's layout is {quote(name)}; this version reads {', '.join(LAYOUTS)}. "
            "Upgrade cones-registry"
        )
    return LAYOUTS[name]
