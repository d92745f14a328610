"""Which windows of a text a recipe reads: its refit and its healing read different ones."""

from __future__ import annotations

import torch

from depthprune_core import text
from depthprune_core.records import Recipe
from depthprune_core.text import Windows


def for_refit(pool: Windows, recipe: Recipe) -> Windows:
    """The windows that the recipe's refit reads: `refit_tokens`, at most a quarter of the pool.

    They are the first windows of the documents that healing reads last.
    """
    return pool.take(_rows_for_refit(pool, recipe))


def training(pool: Windows, recipe: Recipe) -> Windows:
    """The recipe's training windows; each seed draws other documents.

    The refit's are not among them: a student has few errors left to learn from there. A pool of one
    window is read by both.
    """
    if recipe.refit_tokens and len(pool) > 1:
        unread = torch.ones(len(pool), dtype=torch.bool)
        unread[_rows_for_refit(pool, recipe)] = False
        pool = pool.take(unread)
    return text.draw(pool, n_tokens=recipe.tokens, seed=recipe.seed)


def first(windows: Windows, n_tokens: int) -> Windows:
    """The windows at the beginning with at most `n_tokens` tokens, but at least one window."""
    return windows.take(slice(0, max(1, n_tokens // windows.seq_len)))


def last(windows: Windows, n_tokens: int) -> Windows:
    """The windows at the end with at most `n_tokens` tokens, but at least one window."""
    return windows.take(slice(-max(1, n_tokens // windows.seq_len), None))


def _rows_for_refit(pool: Windows, recipe: Recipe) -> torch.Tensor:
    half = max(1, len(pool.names) // 2)  # a draw of so many windows reads each document once
    early = text.draw(pool, n_tokens=half * recipe.seq_len, seed=recipe.seed).document
    turn = torch.arange(len(pool)) - torch.searchsorted(pool.document, pool.document)
    order = turn + len(pool) * torch.isin(pool.document, early)
    n_windows = max(1, min(recipe.refit_tokens // recipe.seq_len, len(pool) // 4))
    return order.argsort(stable=True)[:n_windows]
