"""A notebook for tests of the lab: small models, few documents."""

from __future__ import annotations

from pathlib import Path

import toy

NOTEBOOK = "03_recovery"
PARAMETERS = """study: str = "quick"  # folder under runs/
model: str = "llama-tiny"  # named model
text: str = "wikipedia-excerpt"  # named text
max_documents: int = 3  # documents used of each split
seq_len: int = 48  # tokens a window
score_tokens: int = 60  # tokens scored a document
tokens: int = 2_048  # training tokens
device: str = "cpu"  # auto, cpu or cuda
seed: int = 0  # windows and their order"""


def write_notebook(folder: Path, *code: str) -> Path:
    """The notebook with these cells, in folder/notebooks."""
    return toy.write(folder, NOTEBOOK, *code, parameters=PARAMETERS)
