"""Families of text-to-image models: where their text meets K and V, and what can be done with them.

Read from the code of the pinned diffusers. ``schema/models.md`` is made of this table.
Nothing here imports torch: an admin machine reads layer tables too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

Way = Literal["cached", "joint"]


@dataclass(frozen=True)
class TextLayers:
    """Attention blocks whose K and V project text.

    blocks: regular expression that a block's whole path matches. key, value: names of the two
    projections in the block. text_first: the layer reads the text's rows followed by the picture's
    (single-stream blocks); else text alone.
    """

    blocks: str
    key: str = "to_k"
    value: str = "to_v"
    text_first: bool = False

    def kind_of(self, weight: str) -> Literal["k", "v"] | None:
        """Whether a weight called ``weight`` is K, or V, of such a block."""
        for kind, projection in (("k", self.key), ("v", self.value)):
            suffix = f".{projection}.weight"
            if weight.endswith(suffix) and re.fullmatch(self.blocks, weight.removesuffix(suffix)):
                return "k" if kind == "k" else "v"
        return None


@dataclass(frozen=True)
class Family:
    """One family of models.

    name: as people call it. denoiser: its class in diffusers. pipelines: the stock pipelines that
    are drawn with. way: "cached" where K and V depend on the text alone, so they are computed once
    a picture; "joint" where the text changes at every step, so masked rows are projected again.
    layers: where K and V of the text are. learnt: concepts can be extracted from it.
    remark: what a user should know, a sentence or nothing.
    """

    name: str
    denoiser: str
    pipelines: tuple[str, ...]
    way: Way
    layers: tuple[TextLayers, ...]
    learnt: bool = False
    remark: str = ""


@dataclass(frozen=True)
class Refusal:
    """A model that is refused by name, and why."""

    name: str
    denoiser: str
    reason: str


CROSS: Final = (TextLayers(r".*\.attn2"),)
JOINT: Final = TextLayers(r"transformer_blocks\.\d+\.attn", "add_k_proj", "add_v_proj")
SINGLE: Final = TextLayers(r"single_transformer_blocks\.\d+\.attn", text_first=True)

FAMILIES: Final = (
    Family(
        "Stable Diffusion 1 and 2",
        "UNet2DConditionModel",
        ("StableDiffusionPipeline",),
        "cached",
        CROSS,
        learnt=True,
    ),
    Family(
        "Stable Diffusion XL",
        "UNet2DConditionModel",
        ("StableDiffusionXLPipeline",),
        "cached",
        CROSS,
        learnt=True,
    ),
    Family("Kolors", "UNet2DConditionModel", ("KolorsPipeline",), "cached", CROSS, learnt=True),
    Family(
        "PixArt-α and PixArt-Σ",
        "PixArtTransformer2DModel",
        ("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
        "cached",
        CROSS,
        learnt=True,
    ),
    Family("Sana", "SanaTransformer2DModel", ("SanaPipeline",), "cached", CROSS, learnt=True),
    Family(
        "Hunyuan-DiT",
        "HunyuanDiT2DModel",
        ("HunyuanDiTPipeline",),
        "cached",
        CROSS,
        learnt=True,
    ),
    Family(
        "Wan 2.x, one frame",
        "WanTransformer3DModel",
        ("WanPipeline",),
        "cached",
        CROSS,
        learnt=True,
        remark="Text to video with `num_frames=1`; the models that read a picture are refused.",
    ),
    Family(
        "LTX-Video, one frame",
        "LTXVideoTransformer3DModel",
        ("LTXPipeline",),
        "cached",
        CROSS,
        learnt=True,
        remark="Text to video with `num_frames=1`.",
    ),
    Family(
        "Stable Diffusion 3 and 3.5",
        "SD3Transformer2DModel",
        ("StableDiffusion3Pipeline",),
        "joint",
        (JOINT,),
        learnt=True,
    ),
    Family(
        "FLUX.1",
        "FluxTransformer2DModel",
        ("FluxPipeline",),
        "joint",
        (JOINT, SINGLE),
        learnt=True,
    ),
    Family(
        "Qwen-Image",
        "QwenImageTransformer2DModel",
        ("QwenImagePipeline",),
        "joint",
        (JOINT,),
        learnt=True,
    ),
)

REFUSED: Final = (
    Refusal(
        "Z-Image",
        "ZImageTransformer2DModel",
        "its text stands behind the picture's rows, at another place for every prompt",
    ),
    Refusal(
        "FLUX.2",
        "Flux2Transformer2DModel",
        "most of its blocks (48 of 56) keep K and V in one weight with the feed-forward's",
    ),
    Refusal(
        "Lumina-Next",
        "LuminaNextDiT2DModel",
        "its text is padded on the left to the longest prompt of a batch, so a word's rows are "
        "others in every batch",
    ),
    Refusal(
        "Cosmos",
        "CosmosTransformer3DModel",
        "its pipeline draws only with a guardrail that is not in diffusers",
    ),
    Refusal("PRX", "PRXTransformer2DModel", "its K and V of the text are one fused weight"),
    Refusal(
        "HiDream",
        "HiDreamImageTransformer2DModel",
        "its text rows are joined from two encoders, some anew in every block",
    ),
    Refusal("Lumina 2", "Lumina2Transformer2DModel", "text and picture share one stream"),
    Refusal("Chroma", "ChromaTransformer2DModel", "its text masks have not been tried"),
    Refusal("HunyuanImage", "HunyuanImageTransformer2DModel", "its text has not been tried"),
    Refusal("Kandinsky 5", "Kandinsky5Transformer3DModel", "its text has not been tried"),
    Refusal("AuraFlow", "AuraFlowTransformer2DModel", "its text has not been tried"),
    Refusal("CogView 3", "CogView3PlusTransformer2DModel", "text and picture share one stream"),
    Refusal("CogView 4", "CogView4Transformer2DModel", "text and picture share one stream"),
    Refusal("OmniGen", "OmniGenTransformer2DModel", "text and picture share one stream"),
    Refusal("LTX-2", "LTX2VideoTransformer3DModel", "its text also speaks to sound"),
    Refusal("Wan with a control video", "WanVACETransformer3DModel", "it reads a video"),
    Refusal("Wan Animate", "WanAnimateTransformer3DModel", "it reads a video"),
)


def refusal_of(denoiser: str) -> str | None:
    """Why models of this class are refused, or None."""
    for each in REFUSED:
        if each.denoiser == denoiser:
            return f"{each.name} is not supported: {each.reason}"
    return None


def family_of(denoiser: str, pipeline: str | None = None) -> Family | None:
    """The family of a denoiser's class, and of the pipeline's class where that decides."""
    found = [each for each in FAMILIES if each.denoiser == denoiser]
    named = [each for each in found if pipeline in each.pipelines]
    return next(iter(named or found), None)


def text_layers(denoiser: str, weights: Iterable[str]) -> tuple[TextLayers, ...]:
    """Where a denoiser's text is projected.

    denoiser: its class; one that is not in the table is judged by the names of its weights, as is
    a state dict: joint attention has ``attn.add_k_proj``, cross-attention is called ``attn2``.
    """
    family = family_of(denoiser)
    if family is not None:
        return family.layers
    if any(JOINT.kind_of(name) for name in weights):
        return (JOINT, SINGLE)
    return CROSS


def page() -> str:
    """The tables of ``schema/models.md``, in Markdown."""
    lines = [
        "| family | denoiser | pipelines | K and V of the text | layers | learnt |",
        "|---|---|---|---|---|---|",
    ]
    for each in FAMILIES:
        pipelines = ", ".join(f"`{pipeline}`" for pipeline in each.pipelines)
        layers = "; ".join(_said(layer) for layer in each.layers)
        name = f"{each.name} ({each.remark.rstrip('.')})" if each.remark else each.name
        learnt = "yes" if each.learnt else "no"
        lines.append(
            f"| {name} | `{each.denoiser}` | {pipelines} | {each.way} | {layers} | {learnt} |"
        )
    lines += ["", "| refused | denoiser | why |", "|---|---|---|"]
    lines += [f"| {each.name} | `{each.denoiser}` | {each.reason} |" for each in REFUSED]
    return "\n".join(lines) + "\n"


def _said(layers: TextLayers) -> str:
    where = layers.blocks.replace("\\d+", "N").replace("\\.", ".").replace(".*", "…")
    rows = ", the text's rows" if layers.text_first else ""
    return f"`{where}.{layers.key}`, `.{layers.value}`{rows}"
