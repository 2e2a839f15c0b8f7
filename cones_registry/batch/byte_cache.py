"""Values in memory by key, bounded in bytes, least recently used out first."""

from cones_registry.registry.byte_cache import ByteCache as ByteCache
