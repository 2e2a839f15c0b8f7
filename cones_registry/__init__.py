"""Concept neurons of text-to-image models: learn them, keep them, combine them, draw with them.

Storage never needs torch: the names of the model side are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

from cones_registry.errors import ConesError

if TYPE_CHECKING:
    from cones_registry.attention import shut as shut
    from cones_registry.base_model import BaseModel as BaseModel
    from cones_registry.codec import decode as decode
    from cones_registry.codec import encode as encode
    from cones_registry.codec import load_file as load_file
    from cones_registry.codec import save_file as save_file
    from cones_registry.extraction import Extractor as Extractor
    from cones_registry.generation import Generator as Generator
    from cones_registry.generation import Request as Request
    from cones_registry.layers import LayerTable as LayerTable
    from cones_registry.mask import ConceptMask as ConceptMask
    from cones_registry.record import Concept as Concept
    from cones_registry.registry import Registry as Registry
    from cones_registry.resolver import Composition as Composition
    from cones_registry.stock_pipelines import concepts as concepts

__version__: Final = "0.2.0"

# Every name is lazy, so that `cones --help` loads neither numpy nor pyarrow, duckdb or torch.
_HOMES: Final = {
    "BaseModel": "base_model",
    "Composition": "resolver",
    "Concept": "record",
    "ConceptMask": "mask",
    "Extractor": "extraction",
    "Generator": "generation",
    "LayerTable": "layers",
    "Registry": "registry",
    "Request": "generation",
    "concepts": "stock_pipelines",
    "decode": "codec",
    "encode": "codec",
    "load_file": "codec",
    "save_file": "codec",
    "shut": "attention",
}

__all__ = [
    "BaseModel",
    "Composition",
    "Concept",
    "ConceptMask",
    "ConesError",
    "Extractor",
    "Generator",
    "LayerTable",
    "Registry",
    "Request",
    "__version__",
    "concepts",
    "decode",
    "encode",
    "load_file",
    "save_file",
    "shut",
]

_TORCH_SIDE: Final = frozenset(
    {"attention", "base_model", "extraction", "generation", "stock_pipelines"}
)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{home}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if home not in _TORCH_SIDE or missing == __name__:
            raise
        from cones_registry.errors import MissingExtraError

        raise MissingExtraError(
            f"{name} needs {missing}, which is not installed. "
            "Install the model side: pip install 'cones-registry[model]'"
        ) from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
