"""A folder's tokenizer as a GGUF file describes it: byte-level BPE as GPT-2 and SmolLM have it, and Llama's of pieces with scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import gguf

from depthprune_study.settings import StudyError

SPACE = "\u2581"  # stands for a space in a piece
KINDS = gguf.TokenType


def add(writer: gguf.GGUFWriter, folder: Path, tokenizer: Any) -> None:
    """Write tokens, how words are split and merged, and what the tokenizer puts around a text.

    Raises StudyError for a tokenizer that no such file can describe.
    """
    told = _read(folder)
    names = {index: token for token, index in told["model"]["vocab"].items()}
    names |= {token["id"]: token["content"] for token in told["added_tokens"]}
    size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    writer.add_token_list([names.get(index, f"[unused{index}]") for index in range(size)])
    pre, prefix = _byte_level(told), _of_pieces(told)
    if pre is not None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([" ".join(pair) for pair in _merges(told)])
    elif prefix is not None:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(told, size))
        writer.add_add_space_prefix(prefix)
    else:
        raise StudyError(
            f"the tokenizer of {folder} is no byte-level BPE that splits words as GPT-2 or SmolLM do, nor one of pieces as Llama 2 has it: "
            "take llama.cpp's own converter"
        )
    writer.add_token_types(_kinds(names, told, size))
    ids = {name: index for index, name in names.items()}
    for name, add_id in (("bos_token", writer.add_bos_token_id), ("eos_token", writer.add_eos_token_id)):
        token = _special(folder, name)
        if token in ids:
            add_id(ids[token])
    if prefix is not None:
        writer.add_unk_token_id(ids[told["model"]["unk_token"]])
    _add_what_it_adds(writer, tokenizer)


def _read(folder: Path) -> dict[str, Any]:
    """tokenizer.json; one without tokens where there is none that can be read."""
    try:
        told = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        _ = [
            told["pre_tokenizer"],
            told["normalizer"],
            told["model"]["vocab"].items(),
            told["model"]["type"],
            told["added_tokens"],
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # of a Unigram model, tokens are a list
        return {"model": {"type": "", "vocab": {}}, "added_tokens": [], "pre_tokenizer": None, "normalizer": None}
    return told


def _merges(told: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs, the one that is merged first in front; older files join a pair with a space."""
    return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in told["model"].get("merges") or []]


def _kinds(names: dict[int, str], told: dict[str, Any], size: int) -> list[gguf.TokenType]:
    kinds = [KINDS.NORMAL if index in names else KINDS.UNUSED for index in range(size)]
    for index, token in names.items():
        if told["model"].get("byte_fallback") and _is_byte(token):
            kinds[index] = KINDS.BYTE
    for token in told["added_tokens"]:
        kinds[token["id"]] = KINDS.CONTROL if token["special"] else KINDS.USER_DEFINED
    if told["model"].get("unk_token") in told["model"]["vocab"]:
        kinds[told["model"]["vocab"][told["model"]["unk_token"]]] = KINDS.UNKNOWN
    return kinds


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


# ---------------------------------------------------------------- byte-level BPE


def _byte_level(told: dict[str, Any]) -> str | None:
    """llama.cpp's name for the way that it splits words; None where it is no byte-level BPE, or splits or changes them otherwise."""
    model, steps = told["model"], told["pre_tokenizer"]
    if model["type"] != "BPE" or model.get("byte_fallback") or not model.get("merges") or told["normalizer"] or not steps:
        return None
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    usual = {"ByteLevel": {"add_prefix_space": False, "use_regex": True}, "Digits": {"individual_digits": True}}
    as_usual = all(  # a file that does not say use_regex means that it does
        step.get(key, key == "use_regex") == value for step in steps for key, value in usual.get(step["type"], {}).items()
    )
    known = {("ByteLevel",): "gpt-2", ("Digits", "ByteLevel"): "smollm"}
    return known.get(tuple(step["type"] for step in steps)) if as_usual else None


# ---------------------------------------------------------------- pieces with scores


def _of_pieces(told: dict[str, Any]) -> bool | None:
    """Whether a space is put before a text; None where it is no BPE over pieces of a text whose spaces are marked, with bytes for the rest.

    llama.cpp merges by the score of what results, transformers by the rank of a pair: the same only where every way to make a token is
    a pair, and the pairs of a token follow each other.
    """
    model, prefix = told["model"], _space_prefix(told)
    if model["type"] != "BPE" or not model.get("byte_fallback") or model.get("unk_token") not in model["vocab"]:
        return None
    merges, vocabulary = _merges(told), model["vocab"]
    made = [token for token, _ in groupby(left + right for left, right in merges)]
    added = {token["content"] for token in told["added_tokens"]}
    by_itself = {token for token in vocabulary if len(token) == 1 or _is_byte(token)} | added | {model["unk_token"]}
    ways = {
        (token[:cut], token[cut:])
        for token in made
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    }
    as_scores = len(made) == len(set(made)) and ways == set(merges) and set(made) | by_itself == set(vocabulary) | added
    return prefix if as_scores else None


def _space_prefix(told: dict[str, Any]) -> bool | None:
    """Of the two ways in which files say it: a normalizer that marks spaces, or a step before the model that does."""
    mark, first = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}, {"type": "Prepend", "prepend": SPACE}
    normalizer, before = told["normalizer"], told["pre_tokenizer"]
    if before is None and normalizer is not None:
        steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
        return {str([first, mark]): True, str([mark]): False}.get(str([dict(step) for step in steps]))
    if normalizer is None and before is not None and before["type"] == "Metaspace":
        schemes = {"first": True, "always": True, "never": False}
        return None if before.get("split", True) or before["replacement"] != SPACE else schemes[before["prepend_scheme"]]
    return None


def _scores(told: dict[str, Any], size: int) -> Sequence[float]:
    """Of each token: the sooner it is made, the higher. What no merge makes is never chosen by its score."""
    scores = [-1e6] * size
    for rank, (token, _) in enumerate(groupby(left + right for left, right in _merges(told))):
        scores[told["model"]["vocab"][token]] = -float(rank)
    return scores


# ---------------------------------------------------------------- around a text


def _add_what_it_adds(writer: gguf.GGUFWriter, tokenizer: Any) -> None:
    """Whether it puts its own tokens around a text, and its template of a chat."""
    plain, whole = (tokenizer("a", add_special_tokens=adds).input_ids for adds in (False, True))
    begin, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    around = [(bos, eos) for bos in (False, True) for eos in (False, True) if begin * bos + plain + end * eos == whole]
    if not around:
        raise StudyError(
            f"the tokenizer makes {whole} of {plain}: a GGUF file can say of its first and last token alone that they are added"
        )
    writer.add_add_bos_token(around[0][0])
    writer.add_add_eos_token(around[0][1])
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _special(folder: Path, name: str) -> str | None:
    try:
        token = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get(name)
    except (OSError, ValueError):
        return None
    return token.get("content") if isinstance(token, dict) else token
