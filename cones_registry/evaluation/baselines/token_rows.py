"""Token rows: embeddings of placeholder tokens, learnt while all other words stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from cones_registry.evaluation.baselines.private_model import TEXT_ENCODERS

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel


class TokenRows:
    """One trainable row a token and text encoder, used in place of the encoder's own.

    parameters: "text_encoder.sks" -> float32 [D].
    """

    def __init__(
        self, model: BaseModel, words: Sequence[tuple[str, str]], *, start_at_noun: bool
    ) -> None:
        """words: token and class noun of each subject. The model's text encoders are its own.

        start_at_noun: begin at the noun's embedding (Textual Inversion) instead of the token's.
        """
        self.parameters: dict[str, torch.nn.Parameter] = {}
        self._places: list[tuple[Any, int, torch.nn.Parameter]] = []
        self._hooks = []
        names = [name for name in TEXT_ENCODERS if getattr(model.pipeline, name, None) is not None]
        for name, tokenizer in zip(names, model.tokenizers, strict=True):
            table = getattr(model.pipeline, name).get_input_embeddings()
            rows: list[tuple[int, torch.nn.Parameter]] = []
            for token, noun in words:
                (number,) = _numbers(tokenizer, token)
                start = _numbers(tokenizer, noun) if start_at_noun else [number]
                row = torch.nn.Parameter(table.weight[start].detach().mean(0).clone())
                self.parameters[f"{name}.{token}"] = row
                self._places.append((table, number, row))
                rows.append((number, row))
            self._hooks.append(table.register_forward_hook(_replacing(rows)))

    def settle(self) -> None:
        """Write the rows into the encoders' own tables."""
        for hook in self._hooks:
            hook.remove()
        with torch.no_grad():
            for table, number, row in self._places:
                table.weight[number] = row


def _numbers(tokenizer: Any, word: str) -> list[int]:
    found: list[int] = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word))
    return found


def _replacing(rows: list[tuple[int, torch.nn.Parameter]]) -> Any:
    """A forward hook of an embedding table: int64 [..., T] -> [..., T, D]."""

    def hook(_table: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        for number, row in rows:
            output = torch.where((inputs[0] == number)[..., None], row, output)
        return output

    return hook
