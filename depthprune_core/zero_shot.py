"""Zero-shot tasks through lm-eval, the field's harness, with the model in memory (an extra: pip install 'depthprune[eval]')."""

from __future__ import annotations

import io
import json
import logging
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from depthprune_core.records import Answers, write_atomically
from depthprune_core.text import Document

CLOZE, CHOICE = "depthprune_cloze", "depthprune_choice"
CONTEXT_WORDS = (30, 80)  # before the word or the continuation that is asked for
CONTINUATION_WORDS = 12
N_CHOICES = 4


def write_tasks(folder: Path, documents: Sequence[Document], *, n_items: int, seed: int) -> list[str]:
    """Two tasks made of these documents, as lm-eval task files with their items; returns the tasks' names.

    Cloze: the last word of a sentence that the passage before it has used already (as in LAMBADA, Paperno et al. 2016,
    arXiv:1606.06031). Choice: the true next words of a passage, among three pieces of the same length from elsewhere in its document.

    Raises ValueError where the documents have no passage to ask about.
    """
    generator = random.Random(seed)
    tasks = {CLOZE: list(_cloze(documents)), CHOICE: list(_choices(documents, generator))}
    for name, items in tasks.items():
        if not items:
            raise ValueError(f"{len(documents)} documents have no passage for an item of {name}: longer ones are wanted")
        chosen = generator.sample(items, min(n_items, len(items)))
        data = folder / f"{name}.jsonl"
        write_atomically(data, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in chosen))
        write_atomically(folder / f"{name}.yaml", json.dumps(_task(name, data), indent=1) + "\n")  # JSON is YAML too
    return list(tasks)


def answers(
    model: PreTrainedModel, tokenizer: Any, tasks: Sequence[str], *, folder: Path | None = None, batch_size: int = 8
) -> dict[str, Answers]:
    """Which items of each task the model gets right (`acc`); tasks by name, those of `write_tasks` from their folder.

    Raises ValueError where lm-eval is not installed, or a task has no item that is right or wrong.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ValueError("zero-shot tasks need lm-eval, which is not installed: pip install 'depthprune[eval]'") from None
    with _quietly():
        result = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            task_manager=TaskManager(include_path=str(folder) if folder is not None else None),
            bootstrap_iters=0,
            log_samples=True,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    found = {}
    for task in tasks:
        samples = sorted(result["samples"][task], key=lambda sample: sample["doc_id"])
        if not samples or any("acc" not in sample for sample in samples):
            raise ValueError(f"task {task} is not scored by acc: name a task whose items are right or wrong")
        found[task] = Answers(task, tuple(bool(sample["acc"]) for sample in samples))
    return found


def unknown(tasks: Sequence[str]) -> list[str]:
    """Those of these names that are no single task of lm-eval's: a group has no items of its own."""
    from lm_eval.tasks import TaskManager

    with _quietly():
        known = set(TaskManager().all_subtasks)
    return [task for task in tasks if task not in known]


@contextmanager
def _quietly() -> Iterator[None]:
    """Within the block, a library's bars and warnings go nowhere; afterwards the global random states are what they were."""
    states, logger = (random.getstate(), np.random.get_state()), logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])


def _task(name: str, data: Path) -> dict[str, Any]:
    kinds = {
        CLOZE: {"output_type": "loglikelihood", "doc_to_text": "{{context}}", "doc_to_target": " {{answer}}"},
        CHOICE: {
            "output_type": "multiple_choice",
            "doc_to_text": "{{context}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{label}}",
        },
    }
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(data.parent / "datasets")},
        "test_split": "test",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **kinds[name],
    }


def _cloze(documents: Sequence[Document]) -> Iterator[dict[str, Any]]:
    for document in documents:
        for passage in _passages(document):
            *before, last = passage
            word = last.rstrip(".!?")
            used = {re.sub(r"\W", "", w).lower() for w in before}
            if word.isalpha() and len(word) >= 4 and word.lower() in used:
                yield {"document": document.name, "context": " ".join(before), "answer": word}


def _choices(documents: Sequence[Document], generator: random.Random) -> Iterator[dict[str, Any]]:
    for document in documents:
        words = document.text.split()
        ends = [i + 1 for i, word in enumerate(words) if word.endswith((".", "!", "?"))]
        starts = [i for i in ends if i + CONTINUATION_WORDS <= len(words)]
        for start in starts:
            others = [i for i in starts if abs(i - start) >= CONTEXT_WORDS[1]]
            if start < CONTEXT_WORDS[0] or len(others) < N_CHOICES - 1:
                continue
            at = [start, *generator.sample(others, N_CHOICES - 1)]
            generator.shuffle(at)
            yield {
                "document": document.name,
                "context": " ".join(words[max(0, start - CONTEXT_WORDS[1]) : start]),
                "choices": [" ".join(words[i : i + CONTINUATION_WORDS]) for i in at],
                "label": at.index(start),
            }


def _passages(document: Document) -> Iterator[list[str]]:
    """Words up to the end of each sentence that has enough of them before it."""
    words = document.text.split()
    for end, word in enumerate(words, start=1):
        if word.endswith((".", "!", "?")) and end > CONTEXT_WORDS[0]:
            yield words[max(0, end - CONTEXT_WORDS[1] - 1) : end]
