"""Several processes that recover one student together, one a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from depthprune_core.text import Windows

if TYPE_CHECKING:
    from accelerate import Accelerator


class Team:
    """One of several processes that share the work of each step; alone where there is no accelerator."""

    def __init__(self, accelerator: Accelerator | None) -> None:
        self.accelerator = accelerator
        self.rank, self.size = (accelerator.process_index, accelerator.num_processes) if accelerator is not None else (0, 1)

    @torch.no_grad()
    def align(self, parameters: Iterable[torch.Tensor]) -> None:
        """Give every process the first one's."""
        if self.size > 1:
            for p in parameters:
                p.copy_(self._sum(p if self.rank == 0 else torch.zeros_like(p)))

    def of_the_first(self, digest: bytes) -> bytes:
        """The first one's, in every process."""
        if self.size == 1:
            return digest
        told = torch.tensor(list(digest), dtype=torch.float32, device=self.accelerator.device)
        self.align([told])
        return bytes(map(int, told.tolist()))

    def share(self, batch: Windows) -> Windows:
        """This process' windows of a step; none where the step has fewer windows than there are processes."""
        return batch if self.size == 1 else batch.take(slice(self.rank, None, self.size))

    def add_up(self, parameters: list[nn.Parameter], totals: dict[str, float]) -> dict[str, float]:
        """Gradients, in place, and the terms of the loss, over all processes."""
        if self.size == 1:
            return totals
        device = parameters[0].device
        known = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float64, device=device)
        sums = self._sum(torch.cat([torch.tensor(list(totals.values()), dtype=torch.float64, device=device), known]))
        for p, n in zip(parameters, sums[len(totals) :].tolist(), strict=True):
            if n:
                p.grad = self._sum(torch.zeros_like(p) if p.grad is None else p.grad)
        return dict(zip(totals, sums.tolist(), strict=False))

    def all_or_none(self, found: bool, what: str) -> bool:
        """Whether all processes have found it. Raises ValueError where some have and others have not."""
        if self.size == 1:
            return found
        n = int(self._sum(torch.tensor(float(found), device=self.accelerator.device)))
        if n not in (0, self.size):
            raise ValueError(f"{what} is there for {n} of {self.size} processes: put it where all of them see it")
        return bool(n)

    def wait(self) -> None:
        if self.size > 1:
            self.accelerator.wait_for_everyone()

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")
