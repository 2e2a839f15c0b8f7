"""Masked K/V rows: the one implementation that extraction and generation share.

A mask ``M`` acts at *rows*, one per token of the text: there ``K = (W_K ∘ M) e`` and
``V = (W_V ∘ M) e``, everywhere else the base model's own. Only the projections of the text know of
it, and only while a call brings edits with it, so the base weights are never written: any number
of masks, in one batch or from several threads, share one model. Where K and V depend on the text
alone (cross-attention) they are computed once a picture; where the text changes at every step
(joint attention) the few masked rows are projected again each time.

From bottom up::

    predict = edited(unet, [RowEdit(weights, rows=which)])                  # a callable like unet
    noise = predict(latents, timestep, encoder_hidden_states=embeddings).sample

``weights(name, W) -> W'`` gives the weight to use instead of ``W`` ([out, in], the layer's own
parameter) for the layer called ``name`` in the layer table (``"….attn2.to_k.weight"``). Return
``W`` itself to leave a layer alone. ``which`` is bool [B, T] (True: this row of this batch entry
uses W') or None for every row of the text.

Everything is differentiable, so learning needs nothing else. Freeze the model
(``unet.requires_grad_(False)``) and gradients exist for K/V alone, through what ``weights`` uses:

* straight-through gates ``s``::

      gate = (s[name] > 0.5).to(W) + s[name] - s[name].detach()
      RowEdit(lambda name, W: W * gate(name), rows=subject)

* θ · ∂L/∂θ, the paper's score, is the gradient of a multiplier that stands at one::

      ones = {layer.name: torch.ones(layer.rows, layer.cols, requires_grad=True)
              for layer in table.layers}
      loss(edited(unet, [RowEdit(lambda name, W: W * ones[name])])(...)).backward()
      score = ones[name].grad                                              # θ · ∂L/∂θ, [out, in]

* plain gradients ∂L/∂W (fine-tuning): let ``weights`` return ``leaf[name]``, a detached copy of
  ``W`` that requires a gradient.

``subject_rows(base, prompt, phrases) -> bool [T]`` finds the rows of a concept's own words, which
``find_phrases(prompt, token=…, class_noun=…)`` looks for where their places are not known already;
``mask_weights(mask)`` is the ``weights`` of a ``ConceptMask``; ``plan_rows`` makes the edits of a
batch of requests; ``shut(unet, mask)`` is the in-place reference; ``with record_maps(unet) as
maps:`` notes where in the picture each row is attended to.
"""

from cones_registry.attention.maps import AttentionMaps, record_maps
from cones_registry.attention.modules import (
    TextAttention,
    is_cached,
    text_attentions,
    unservable_reason,
)
from cones_registry.attention.plan import MaskedPart, RequestParts, plan_rows
from cones_registry.attention.projecting import EditedModel, edited, installed, project_text
from cones_registry.attention.rows import RowEdit
from cones_registry.attention.shutting import shut
from cones_registry.attention.subject_rows import (
    ROW_CHOICES,
    Phrase,
    RowChoice,
    find_phrases,
    names_token,
    row_count,
    subject_rows,
)
from cones_registry.attention.weights import check_table, mask_weights

__all__ = [
    "ROW_CHOICES",
    "AttentionMaps",
    "EditedModel",
    "MaskedPart",
    "Phrase",
    "RequestParts",
    "RowChoice",
    "RowEdit",
    "TextAttention",
    "check_table",
    "edited",
    "find_phrases",
    "installed",
    "is_cached",
    "mask_weights",
    "names_token",
    "plan_rows",
    "project_text",
    "record_maps",
    "row_count",
    "shut",
    "subject_rows",
    "text_attentions",
    "unservable_reason",
]
