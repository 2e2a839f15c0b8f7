"""Drawing: requests with any mix of masks, one batch, one unchanged base model."""

from cones_registry.generation.generator import Generator
from cones_registry.generation.recipe import encode_picture, read_recipe
from cones_registry.generation.request import Request
from cones_registry.generation.schedulers import SCHEDULERS

__all__ = [
    "SCHEDULERS",
    "Generator",
    "Request",
    "encode_picture",
    "read_recipe",
]
