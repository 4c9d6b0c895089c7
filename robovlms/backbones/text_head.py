"""Text in, as token ids, and text out, as logits of the next token: tokenizers and the head that co-training needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from robovlms.config.policy import BackboneConfig


class Tokenizer(ABC):
    """Text to token ids as a backbone reads them; small enough to travel to loader processes. Nothing is padded."""

    @property
    @abstractmethod
    def end_id(self) -> int:
        """The token that ends a reply."""

    @abstractmethod
    def __call__(self, prompts: list[str]) -> list[list[int]]:
        """Return the ids of prompts, special tokens included."""

    @abstractmethod
    def question_ids(self, text: str) -> list[int]:
        """Return the ids of the beginning of a conversation, special tokens included."""

    @abstractmethod
    def reply_ids(self, before: str, text: str) -> list[int]:
        """Return the ids of text that follows `before`."""


@dataclass(frozen=True, kw_only=True)
class FamilyTokenizer(Tokenizer):
    """A Hugging Face tokenizer, and what the family's own format puts around a prompt. Never the end token.

    An end token would follow the query, and in a causal decoder nothing after the query changes its feature.
    """

    tokenizer: Any
    start: tuple[int, ...]  # ids that every text starts with
    before: str  # in front of the prompt
    behind: str  # after the prompt
    behind_question: str  # after the beginning of a conversation
    end: str | None  # the token that ends a reply; None: the checkpoint names none

    @property
    def end_id(self) -> int:
        """The token that ends a reply."""
        return int(self.tokenizer.convert_tokens_to_ids(self.end))

    def __call__(self, prompts: list[str]) -> list[list[int]]:
        """Return `<start> before prompt behind`."""
        return self._ids([self.before + prompt.strip() + self.behind for prompt in prompts])

    def question_ids(self, text: str) -> list[int]:
        """Keep blanks at the ends, which a prompt loses: a template may end with a line."""
        return self._ids([self.before + text + self.behind_question])[0]

    def reply_ids(self, before: str, text: str) -> list[int]:
        """Return the tokens that the whole text has more than `before`; alone where the seam is within a token."""
        start, whole, alone = self.tokenizer([before, before + text, text], add_special_tokens=False)["input_ids"]
        return whole[len(start) :] if whole[: len(start)] == start else alone

    def _ids(self, texts: list[str]) -> list[list[int]]:
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [[*self.start, *row] for row in rows]


class TextHead(ABC):
    """What a backbone that writes text has beyond the contract: the next token, for co-training on conversations.

    It holds no weights of its own: they are the backbone's.
    """

    @abstractmethod
    def enable(self, config: BackboneConfig) -> None:
        """Get ready to predict tokens.

        Raises:
            UserError: the checkpoint lacks the vocabulary head that its family has, or a token that ends a reply.
        """

    @abstractmethod
    def lm_hidden(
        self,
        image: Float[Tensor, "n t v m e"],
        text_ids: Int64[Tensor, "n l"],
        text_mask: Bool[Tensor, "n l"],
        reply_ids: Int64[Tensor, "n r"],
        view_mask: Bool[Tensor, "n v"] | None = None,
    ) -> Float[Tensor, "n r d"]:
        """Return the hidden states that each token of a reply to the text is predicted from.

        Args:
            image: as in `Backbone.read`, of one frame.
            text_ids: the question's tokens, right-padded.
            text_mask: False where they are padding.
            reply_ids: tokens that follow it, right-padded with anything.
            view_mask: False where a sequence has no image.
        """

    @abstractmethod
    def lm_logits(self, features: Float[Tensor, "y d"]) -> Float[Tensor, "y _words"]:
        """Return the logits of the next token over the vocabulary, in float32, from what `lm_hidden` returns."""
