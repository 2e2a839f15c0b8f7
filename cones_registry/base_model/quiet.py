"""What the model libraries say while they load: what a user can act on, and bars on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_loading(*, known: bool) -> Iterator[None]:
    """Loading bars on a terminal only; no advice about optional packages that are not used here.

    known: the model is our own, so what diffusers finds unusual about it (its small autoencoder) is
    nothing to tell. All settings are as before on leaving.
    """
    from transformers.utils import logging as transformers_logging

    # Importing a pipeline advises to install torchvision for image processors that never run.
    transformers_level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        from diffusers.utils import logging as diffusers_logging

        libraries = (diffusers_logging, transformers_logging)
        shown = [library for library in libraries if library.is_progress_bar_enabled()]
        diffusers_level = diffusers_logging.get_verbosity()
        if known:
            diffusers_logging.set_verbosity_error()
        if not sys.stderr.isatty():
            for library in shown:
                library.disable_progress_bar()
        try:
            yield
        finally:
            diffusers_logging.set_verbosity(diffusers_level)
            for library in shown:
                library.enable_progress_bar()
    finally:
        transformers_logging.set_verbosity(transformers_level)
