"""The HTTP service: any mix of concepts in one batch, with pages to look at. Extra ``serve``."""

from cones_registry.serving.application import create_app
from cones_registry.serving.running import serve
from cones_registry.serving.service import Service
from cones_registry.serving.settings import ServiceSettings

__all__ = ["Service", "ServiceSettings", "create_app", "serve"]
