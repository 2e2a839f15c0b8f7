"""How the stock pipelines of each family turn a prompt into the rows their denoiser reads.

Read from the pipelines of the pinned diffusers: which tokenizers read the prompt, what stands
around it, and at which row of the text each token comes to lie.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel


@dataclass(frozen=True)
class TextPart:
    """What one tokenizer gives to the text.

    tokenizer: reads the prompt. length: tokens it gives, padded and cut. start: row of the text at
    which its first kept token lies. kept: which tokens become rows, in order; None: all.
    prepare: what the pipeline makes of the prompt first. before, after: what it writes around it.
    """

    tokenizer: Any
    length: int
    start: int = 0
    kept: Sequence[int] | None = None
    prepare: Callable[[str], str] = field(default=lambda prompt: prompt)
    before: str = ""
    after: str = ""

    @property
    def row_count(self) -> int:
        """Rows it fills."""
        return self.length if self.kept is None else len(self.kept)


def text_parts(
    base: BaseModel, max_sequence_length: int | None = None, *, negative: bool = False
) -> tuple[TextPart, ...]:
    """Where the tokens of a prompt lie among the rows that the denoiser of ``base`` reads.

    max_sequence_length: what the stock pipeline is told, where it takes that. negative: of a
    negative prompt, which Sana reads without the instruction it puts before others.
    """
    pipeline = base.pipeline
    layout = _LAYOUTS.get(type(pipeline).__name__)
    length = max_sequence_length or default_length(pipeline)
    if layout is not None:
        return layout(pipeline, length, negative)
    return tuple(
        TextPart(
            tokenizer,
            length or int(tokenizer.model_max_length),
            prepare=partial(_prepared, pipeline, tokenizer),
        )
        for tokenizer in base.tokenizers
    )


def default_length(pipeline: Any) -> int | None:
    """The pipeline's default of ``max_sequence_length``, where it has that argument."""
    parameter = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    return None if parameter is None or parameter.default is None else int(parameter.default)


def _part(pipeline: Any, name: str, length: int, **rest: Any) -> TextPart:
    tokenizer = getattr(pipeline, name)
    return TextPart(tokenizer, length, prepare=partial(_prepared, pipeline, tokenizer), **rest)


def _prepared(pipeline: Any, tokenizer: Any, prompt: str) -> str:
    """The text that the pipeline gives to its tokenizer."""
    if hasattr(pipeline, "maybe_convert_prompt"):
        return str(pipeline.maybe_convert_prompt(prompt, tokenizer))
    if hasattr(pipeline, "_text_preprocessing"):
        return str(pipeline._text_preprocessing(prompt, clean_caption=False)[0])
    cleaned = getattr(inspect.getmodule(type(pipeline)), "prompt_clean", None)
    return prompt if cleaned is None else str(cleaned(prompt))


def _stable_diffusion_3(pipeline: Any, length: int | None, negative: bool) -> tuple[TextPart, ...]:
    """Both CLIP encoders fill the first rows, side by side; T5 those behind them."""
    first = int(pipeline.tokenizer_max_length)
    clip = [_part(pipeline, name, first) for name in ("tokenizer", "tokenizer_2")]
    if pipeline.text_encoder_3 is None:  # zeros stand there instead
        return (*clip, TextPart(None, length or 256, first))
    return (*clip, _part(pipeline, "tokenizer_3", length or 256, start=first))


def _flux(pipeline: Any, length: int | None, negative: bool) -> tuple[TextPart, ...]:
    """T5's rows alone; CLIP gives one vector for the whole prompt."""
    return (_part(pipeline, "tokenizer_2", length or 512),)


def _hunyuan(pipeline: Any, length: int | None, negative: bool) -> tuple[TextPart, ...]:
    return (_part(pipeline, "tokenizer", 77), _part(pipeline, "tokenizer_2", 256, start=77))


def _kolors(pipeline: Any, length: int | None, negative: bool) -> tuple[TextPart, ...]:
    """Whatever length is asked for, the prompt is encoded at the default one."""
    return (_part(pipeline, "tokenizer", 256),)


def _qwen(pipeline: Any, length: int | None, negative: bool) -> tuple[TextPart, ...]:
    """The tokens of the chat template before the prompt are dropped after encoding."""
    dropped = int(pipeline.prompt_template_encode_start_idx)
    before, after = pipeline.prompt_template_encode.split("{}")
    total = int(pipeline.tokenizer_max_length) + dropped
    kept = range(dropped, min(dropped + (length or 512), total))
    part = TextPart(pipeline.tokenizer, total, kept=kept, before=before, after=after)
    return (part,)


def _sana(pipeline: Any, length: int | None, negative: bool) -> tuple[TextPart, ...]:
    """An instruction stands before the prompt; its rows but the first are dropped."""
    length = length or 300
    pipeline.tokenizer.padding_side = "right"  # as the pipeline does before it encodes
    if negative:
        return (_part(pipeline, "tokenizer", length),)
    lines = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"]
    instruction = "\n".join(lines.default)
    total = len(pipeline.tokenizer.encode(instruction)) + length - 2
    kept = [0, *range(total - length + 1, total)]
    return (_part(pipeline, "tokenizer", total, kept=kept, before=instruction),)


_Layout = Callable[[Any, "int | None", bool], tuple[TextPart, ...]]
_LAYOUTS: dict[str, _Layout] = {
    "FluxPipeline": _flux,
    "HunyuanDiTPipeline": _hunyuan,
    "KolorsPipeline": _kolors,
    "QwenImagePipeline": _qwen,
    "SanaPipeline": _sana,
    "StableDiffusion3Pipeline": _stable_diffusion_3,
}
