"""A notebook for tests of the lab: small models, few documents."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

NOTEBOOK = "03_recovery"
PARAMETERS = """study: str = "quick"  # folder under runs/
model: str = "llama-tiny"  # named model
text: str = "wikipedia-excerpt"  # named text
max_documents: int = 3  # documents used of each split
seq_len: int = 48  # tokens a window
score_tokens: int = 60  # tokens scored a document
tokens: int = 1_024  # training tokens
device: str = "cpu"  # auto, cpu or cuda
seed: int = 0  # windows and their order"""


def write_notebook(folder: Path, parameters: str, *code: str) -> None:
    cells = [cell(parameters, "parameters"), *(cell(source) for source in code)]
    content = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / f"{NOTEBOOK}.ipynb").write_text(json.dumps(content))


def cell(source: str, *tags: str) -> dict[str, Any]:
    name = hashlib.sha256(source.encode()).hexdigest()[:8]
    made = {"cell_type": "code", "id": name, "source": source, "metadata": {"tags": list(tags)}}
    return {**made, "execution_count": None, "outputs": []}
