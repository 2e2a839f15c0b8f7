"""Pages about concepts, for people: a static gallery, and what the service shows.

Jinja2 templates with everything escaped, one style sheet, no script that reading needs.
"""

from .gallery import GalleryReport, write_gallery

__all__ = ["GalleryReport", "write_gallery"]
