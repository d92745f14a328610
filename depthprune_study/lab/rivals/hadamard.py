"""Hadamard matrices for common model sizes, by Paley's and Sylvester's constructions."""

from __future__ import annotations

import scipy.linalg
import torch

from depthprune_study.errors import StudyError


def hadamard(n: int) -> torch.Tensor:
    """An orthonormal matrix whose entries are all +-1/sqrt(n).  (n, n) float64

    Takes the smallest Paley matrix (q + 1 or 2 (q + 1) rows for a prime q) of size n / 2^k and
    doubles it k times. Raises StudyError for other sizes.
    """
    doublings = (n & -n).bit_length() - 1
    for k in range(doublings, -1, -1):
        core = _paley(n >> k)
        if core is not None:
            doubled = torch.from_numpy(scipy.linalg.hadamard(2**k, dtype=float))
            return torch.kron(doubled, core) / n**0.5
    raise StudyError(
        f"no Hadamard matrix of size {n} is known here, so LinearPatch cannot be tried"
    )


def _paley(n: int) -> torch.Tensor | None:
    """A matrix with entries +-1; None if neither construction has n rows."""
    if n == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    q = n - 1
    if q % 4 == 3 and _is_prime(q):
        return torch.eye(n, dtype=torch.float64) + _conference(q, below=-1.0)
    q = n // 2 - 1
    if n % 2 == 0 and q % 4 == 1 and q > 1 and _is_prime(q):
        entries = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        on_diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        eye = torch.eye(n // 2, dtype=torch.float64)
        return torch.kron(_conference(q, below=1.0), entries) + torch.kron(eye, on_diagonal)
    return None


def _conference(q: int, *, below: float) -> torch.Tensor:
    """A matrix of q + 1 rows: 0 on the diagonal, Jacobsthal's matrix of q, bordered by +-1."""
    squares = {i * i % q for i in range(1, q)}
    symbol = torch.tensor([0.0, *(1.0 if i in squares else -1.0 for i in range(1, q))])
    numbers = torch.arange(q)
    matrix = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    matrix[0, 1:], matrix[1:, 0] = 1.0, below
    matrix[1:, 1:] = symbol[(numbers[:, None] - numbers) % q].double()
    return matrix


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % i for i in range(2, int(n**0.5) + 1))
