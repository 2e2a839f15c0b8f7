"""Masked K/V rows: the one implementation that extraction and generation share.

Cross-attention K and V depend on the text embeddings alone, not on the timestep and not on the
latents, and they are rows, one per token. So a mask ``M`` is applied by computing
``K = (W_K ∘ M) e`` and ``V = (W_V ∘ M) e`` once, for all rows or for some, and by serving those
rows at every denoising step. The base weights are never written, so any number of masks, in one
batch or from several threads, share one model.

Three calls, bottom up::

    rows = project_rows(unet, embeddings, [RowEdit(weights, rows=which)])   # K, V of every layer
    predict = serve(unet, rows)                                             # a callable like unet
    noise = predict(latents, timestep, encoder_hidden_states=embeddings).sample

``weights(name, W) -> W'`` gives the weight to use instead of ``W`` ([out, in], the layer's own
parameter) for the layer called ``name`` in the layer table (``"….attn2.to_k.weight"``). Return
``W`` itself to leave a layer alone. ``which`` is bool [B, T] (True: this row of this batch entry
uses W') or None for every row.

Everything is differentiable, so learning needs nothing else. Freeze the model
(``unet.requires_grad_(False)``) and gradients exist for K/V alone, through what ``weights`` uses:

* straight-through gates ``s``::

      gate = (s[name] > 0.5).to(W) + s[name] - s[name].detach()
      RowEdit(lambda name, W: W * gate(name), rows=subject)

* θ · ∂L/∂θ, the paper's score, is the gradient of a multiplier that stands at one::

      ones = {layer.name: torch.ones(layer.rows, layer.cols, requires_grad=True)
              for layer in table.layers}
      rows = project_rows(unet, embeddings, [RowEdit(lambda name, W: W * ones[name])])
      loss(serve(unet, rows)(...)).backward()
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
from cones_registry.attention.modules import CrossAttention, cross_attentions, unservable_reason
from cones_registry.attention.plan import MaskedPart, RequestParts, plan_rows
from cones_registry.attention.rows import KVRows, RowEdit, project_rows
from cones_registry.attention.serving import ServedModel, serve
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
    "CrossAttention",
    "KVRows",
    "MaskedPart",
    "Phrase",
    "RequestParts",
    "RowChoice",
    "RowEdit",
    "ServedModel",
    "check_table",
    "cross_attentions",
    "find_phrases",
    "mask_weights",
    "names_token",
    "plan_rows",
    "project_rows",
    "record_maps",
    "row_count",
    "serve",
    "shut",
    "subject_rows",
    "unservable_reason",
]
