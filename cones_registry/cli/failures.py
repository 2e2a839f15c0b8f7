"""From an exception to one readable message and an exit code."""

from __future__ import annotations

import traceback

import click

from cones_registry.errors import EXIT_CODES, ConesError, MissingExtraError

from .output import Output

INTERRUPTED = 130  # what shells expect of a program that was stopped with Ctrl-C

# The module that could not be imported, and the extra that brings it.
EXTRA_OF_MODULE = {
    "accelerate": "model",
    "diffusers": "model",
    "PIL": "model",
    "safetensors": "model",
    "torch": "model",
    "transformers": "model",
    "adlfs": "azure",
    "deltalake": "delta",
    "gcsfs": "gcs",
    "fastapi": "serve-ray",
    "jinja2": "gallery",
    "prometheus_client": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "matplotlib": "plot",
    "numba": "fast",
    "ray": "ray",
    "s3fs": "s3",
}


def exit_code(error: BaseException) -> int:
    """The exit code that `error` ends the command with."""
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, click.ClickException):
        return error.exit_code
    if isinstance(error, ConesError):
        return error.exit_code
    if _missing_extra(error):
        return MissingExtraError.exit_code
    return 1


def report(error: BaseException, output: Output, *, debug: bool) -> int:
    """Say on stderr what went wrong and what to do about it; return the exit code."""
    if debug:
        output.message("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, click.Abort | KeyboardInterrupt):
        output.message("stopped")
    elif isinstance(error, click.exceptions.NoArgsIsHelpError):
        output.message(error.format_message())
    elif isinstance(error, click.UsageError):
        if error.ctx is not None:
            output.message(error.ctx.get_usage())
        output.message(f"error: {error.format_message()}")
        if error.ctx is not None:
            output.message(f"More: {error.ctx.command_path} --help")
    elif isinstance(error, click.ClickException):
        output.message(f"error: {error.format_message()}")
    elif extra := _missing_extra(error):
        output.message(
            f"error: {error}. This needs the extra '{extra}': pip install 'cones-registry[{extra}]'"
        )
    elif isinstance(error, ConesError | OSError):
        output.message(f"error: {error}")
    else:
        output.message(
            f"error: unexpected {type(error).__name__}: {error}\n"
            "This is a bug. Run the command again with --debug to see where."
        )
    return exit_code(error)


def exit_code_table() -> str:
    """The exit codes as `cones --help` shows them."""
    return "\n".join(f"  {code:>3}  {meaning}" for code, meaning in sorted(EXIT_CODES.items()))


def _missing_extra(error: BaseException) -> str | None:
    if not isinstance(error, ModuleNotFoundError) or isinstance(error, ConesError):
        return None
    return EXTRA_OF_MODULE.get((error.name or "").split(".")[0])
