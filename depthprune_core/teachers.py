"""What a teacher says of a window, kept for the next recovery that asks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from depthprune_core import losses
from depthprune_core.decoders import Decoder, decoder, hidden_states


class _PerWindow:
    """What a teacher gives for a window, kept in main memory from the first time that the window is seen.

    Recoveries that share teacher and windows (arms, rates, seeds) then run it once. Each window is computed by itself, so that what is
    kept does not depend on who asked first. What would take more than `limit_bytes` in all is computed anew each time.
    """

    def __init__(self, teacher: PreTrainedModel, limit_bytes: int) -> None:
        self.teacher, self._room = teacher, limit_bytes
        self._kept: dict[bytes, tuple[torch.Tensor, ...]] = {}

    @property
    def recipe(self) -> dict[str, int]:
        """What a recovery's record has to say of it: nothing where it changes no number."""
        return {}

    def check(self, teacher: PreTrainedModel | None, loss: Mapping[str, float], temperature: float) -> None:
        """Raises ValueError where a recovery of this kind cannot use it."""
        if self.teacher is not teacher:
            raise ValueError("teacher_cache was made from another model than this teacher")
        if "hidden" in loss:
            raise ValueError(
                f"teacher_cache keeps no states between layers, which the hidden term needs; got loss={dict(loss)}"
            )

    def _make(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(1, seq) token ids -> what is kept, (seq, ...) each"""
        raise NotImplementedError

    @torch.no_grad()
    def _rows(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(batch, seq) token ids -> (batch x seq, ...) each, on the teacher's device"""
        device = self.teacher.device
        rows = [self._row(row) for row in ids]
        return tuple(torch.cat([part.to(device) for part in parts]) for parts in zip(*rows, strict=True))

    def _row(self, row: torch.Tensor) -> tuple[torch.Tensor, ...]:
        name = row.cpu().numpy().tobytes()
        if name in self._kept:
            return self._kept[name]
        made = tuple(part.cpu() for part in self._make(row[None].to(self.teacher.device)))
        n_bytes = sum(part.nbytes for part in made)
        if n_bytes <= self._room:
            self._room -= n_bytes
            self._kept[name] = made
        return made


class TeacherStates(_PerWindow):
    """A teacher's last hidden states: its layers run once a window, its head each time, so nothing is approximated.

    4 d bytes a token in float32 (d: hidden size).
    """

    def __init__(self, teacher: PreTrainedModel, *, limit_bytes: int = 2**31) -> None:
        super().__init__(teacher, limit_bytes)

    def _make(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (hidden_states(self.teacher, ids).flatten(0, 1),)

    def of(self, ids: torch.Tensor) -> tuple[Decoder, torch.Tensor]:
        """(batch, seq) token ids -> the teacher's parts and its states, (batch x seq, d)"""
        return decoder(self.teacher), self._rows(ids)[0]


class TeacherTop(_PerWindow):
    """A teacher's k most likely next tokens: neither its layers nor its head run again.

    What it costs: KL over k + 1 outcomes instead of the vocabulary, never more than the full KL; the gap is what the student
    gets wrong among the unlikely tokens alone. 8 k bytes a token.
    """

    def __init__(self, teacher: PreTrainedModel, k: int, *, limit_bytes: int = 2**31) -> None:
        vocabulary = len(decoder(teacher).head.weight)
        if not 1 <= k < vocabulary:
            raise ValueError(f"k={k} tokens to keep: a vocabulary of {vocabulary} allows 1..{vocabulary - 1}")
        super().__init__(teacher, limit_bytes)
        self.k = k

    @property
    def recipe(self) -> dict[str, int]:
        return {"teacher_top": self.k}

    def check(self, teacher: PreTrainedModel | None, loss: Mapping[str, float], temperature: float) -> None:
        super().check(teacher, loss, temperature)
        if temperature != 1:
            raise ValueError(f"teacher_cache of top tokens holds at temperature=1 alone; got temperature={temperature}")

    def _make(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        top = losses.most_likely(decoder(self.teacher), hidden_states(self.teacher, ids).flatten(0, 1), self.k)
        return top.tokens, top.log_p

    def of(self, ids: torch.Tensor) -> losses.TopTokens:
        """(batch, seq) token ids -> the top tokens of every position, (batch x seq, k)"""
        return losses.TopTokens(*self._rows(ids))
