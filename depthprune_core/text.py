"""Named text -> documents -> splits -> windows of tokens."""

from __future__ import annotations

import bz2
import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from depthprune_core.assets import WheelFile, check_hashes, fetch, snapshot
from depthprune_core.records import write_atomically

SPLITS_FILE = Path(__file__).with_name("splits.json")
MIN_DOCUMENT_CHARS = 2_000
SPLITS = ("recovery", "calibration", "validation", "test")

_GENSIM = "gensim==4.4.0"
_WIKIPEDIA = WheelFile(
    _GENSIM,
    "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
    "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
)
_NEWS = WheelFile(
    _GENSIM,
    "gensim/test/test_data/lee_background.cor",
    "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
)
_WIKITEXT = {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", "revision": "b08601e04326c79dfdd32d625aee71d232d685c3"}
# A parser's new version may clean differently: then the splits, and every number, would be about another text.
_WIKIPEDIA_CLEANED_SHA256 = "a5cf88f7b80d671ef21766ed9bf11315f4a29e524d6d726260b66a8f636eee55"


@dataclass(frozen=True)
class Document:
    """One text that is scored by itself: an article, a news story."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Windows:
    """Token windows that never cross a document. `inputs[w, t]` predicts `targets[w, t]`; padding is masked out.

    Each window begins with BOS (or EOS where a tokenizer has no BOS), so its first token is scored too and no token
    of a document is lost or scored twice.
    """

    inputs: torch.Tensor  # (n_windows, seq_len) int64
    targets: torch.Tensor  # (n_windows, seq_len) int64
    mask: torch.Tensor  # (n_windows, seq_len) bool; False = padding
    document: torch.Tensor  # (n_windows,) int64, index into `names`
    names: tuple[str, ...]
    n_bytes: tuple[int, ...]  # UTF-8 bytes of the scored text, one a document

    def __len__(self) -> int:
        return self.inputs.shape[0]

    @property
    def n_tokens(self) -> int:
        return int(self.mask.sum())

    @property
    def seq_len(self) -> int:
        return self.inputs.shape[1]

    @property
    def token_hash(self) -> str:
        """Names the exact token ids, their order and their windows: two runs that saw the same text in the same way share it."""
        digest = hashlib.sha256(repr((tuple(self.inputs.shape), self.names, self.n_bytes)).encode())
        for tensor in (self.inputs, self.targets, self.mask, self.document):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:16]

    def take(self, rows: torch.Tensor | slice) -> Windows:
        """The same documents, but only these windows, in this order."""
        return Windows(self.inputs[rows], self.targets[rows], self.mask[rows], self.document[rows], self.names, self.n_bytes)

    def batches(self, batch_size: int) -> Iterator[Windows]:
        for start in range(0, len(self), batch_size):
            yield self.take(slice(start, start + batch_size))


# ---------------------------------------------------------------- named texts


def load(name: str, *, cache: Path, assets: Path | None = None) -> list[Document]:
    """The documents of a named text, in a fixed order.

    `wikipedia-excerpt` and `news-excerpt` come out of a PyPI wheel, `wikitext-2` from the data hub (pinned revision);
    anything else must be a local UTF-8 file (one document) or a folder of .txt files (one document each), or a folder
    with the layout of the hub's wikitext-2 (`<split>-*.parquet`).
    """
    if name == "wikipedia-excerpt":
        return _wikipedia(Path(cache), assets)
    if name == "news-excerpt":
        lines = fetch(_NEWS, cache=Path(cache), look_first=assets).read_text(encoding="utf-8").splitlines()
        return [Document(f"news-{i:03d}", line.strip()) for i, line in enumerate(lines) if line.strip()]
    if name == "wikitext-2":
        return [document for split in wikitext().values() for document in split]
    path = Path(name)
    if path.is_file():
        return [_from_file(path)]
    if path.is_dir() and (files := sorted(path.glob("*.txt"))):
        return [_from_file(file) for file in files]
    raise ValueError(
        f"text {name!r} is not known: name wikipedia-excerpt, news-excerpt, wikitext-2, a text file or a folder of .txt files"
    )


def _from_file(path: Path) -> Document:
    try:
        return Document(path.name, path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start} cannot be read") from None


def wikitext(folder: Path | None = None) -> dict[str, list[Document]]:
    """WikiText-2 raw, as articles: {"train": [...], "validation": [...], "test": [...]}.

    From the data hub at a pinned revision, its files held to the hashes by which the hub names them; or from a local folder of the same
    layout (parquet files named by split). An article begins at a line ` = Title = `; sections (` = = Name = = `) do not begin one.

    Raises RuntimeError where the hub gives nothing, ValueError for files that are missing or damaged.
    """
    folder = _wikitext_of_the_hub() if folder is None else Path(folder)
    files = {split: sorted(folder.glob(f"{split}-*.parquet")) for split in ("train", "validation", "test")}
    if missing := [split for split, found in files.items() if not found]:
        raise ValueError(f"folder {folder} has no {missing[0]}-*.parquet: it does not have WikiText-2's layout")
    return {split: _articles(split, [line for file in found for line in _lines(file)]) for split, found in files.items()}


def _wikitext_of_the_hub() -> Path:
    where, revision = _WIKITEXT["path"], _WIKITEXT["revision"]
    try:
        folder = snapshot(where, revision, files=[f"{_WIKITEXT['name']}/*.parquet"], repo_type="dataset") / _WIKITEXT["name"]
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not there yet")
    except OSError:  # ConnectionError too
        raise RuntimeError(
            f"could not fetch wikitext-2 ({where} at {revision[:8]}) from the data hub: check the network (and HF_HUB_OFFLINE), or name "
            "a local folder with its parquet files"
        ) from None
    try:
        check_hashes(folder, files=["*.parquet"])
    except ValueError as error:
        raise ValueError(
            f"wikitext-2: {error}: with the network at hand, remove {folder.parents[2]} and run again, it is then fetched anew"
        ) from None
    return folder


def _lines(file: Path) -> list[str]:
    """The column `text` of a parquet file: of the file itself, since nothing looks again at the copies that datasets keeps."""
    import datasets

    try:
        return [row["text"] for row in datasets.load_dataset("parquet", data_files=str(file), split="train", streaming=True)]
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{file} cannot be read as parquet with a column text ({type(error).__name__}: {reason})") from None


def _articles(split: str, lines: Sequence[str]) -> list[Document]:
    articles: list[tuple[str, list[str]]] = []
    for line in lines:
        heading = re.fullmatch(r" = ([^=].*?) = \n?", line)
        if heading:
            articles.append((heading.group(1), []))
        if articles:
            articles[-1][1].append(line)
    return [Document(f"{split}/{title}", "".join(parts).strip()) for title, parts in articles]


def _wikipedia(cache: Path, assets: Path | None) -> list[Document]:
    cleaned = cache / "wikipedia-excerpt.json"
    if not cleaned.exists() or hashlib.sha256(cleaned.read_bytes()).hexdigest() != _WIKIPEDIA_CLEANED_SHA256:
        dump = fetch(_WIKIPEDIA, cache=cache, look_first=assets)
        text = json.dumps([[title, _clean(source)] for title, source in _pages(dump)], ensure_ascii=False, indent=0)
        actual = hashlib.sha256(text.encode()).hexdigest()
        if actual != _WIKIPEDIA_CLEANED_SHA256:
            raise ValueError(
                f"the cleaned wikipedia-excerpt has sha256 {actual}, expected {_WIKIPEDIA_CLEANED_SHA256}: "
                "install the mwparserfromhell version that constraints.txt names"
            )
        write_atomically(cleaned, text)
    documents = [Document(title, text) for title, text in json.loads(cleaned.read_text(encoding="utf-8"))]
    return [document for document in documents if len(document.text) >= MIN_DOCUMENT_CHARS]


def _pages(dump: Path) -> Iterator[tuple[str, str]]:
    """(title, wiki source) of every article of a MediaWiki XML dump; redirects and talk pages are passed over."""
    namespace = "{http://www.mediawiki.org/xml/export-0.10/}"
    with bz2.open(dump) as file:
        for _, page in ElementTree.iterparse(file):
            if page.tag != f"{namespace}page":
                continue
            is_article = page.findtext(f"{namespace}ns") == "0" and page.find(f"{namespace}redirect") is None
            if is_article:
                yield page.findtext(f"{namespace}title"), page.findtext(f"{namespace}revision/{namespace}text")
            page.clear()


def _clean(source: str) -> str:
    """Running text of a wiki page: no tables, templates, footnotes, files, categories or reference sections."""
    import mwparserfromhell

    source = re.split(r"\n==\s*(?:References|See also|External links|Notes|Further reading|Bibliography)\s*==", source)[0]
    source = re.sub(r"\{\|.*?\n\|\}", "", source, flags=re.DOTALL)  # tables
    source = re.sub(r"<ref[^>/]*/>|<ref[^>]*>.*?</ref>|<!--.*?-->", "", source, flags=re.DOTALL)
    code = mwparserfromhell.parse(source)
    for link in code.filter_wikilinks(recursive=True):
        if re.match(r"\s*(?:File|Image|Category)\s*:", str(link.title), flags=re.IGNORECASE):
            try:
                code.remove(link)
            except ValueError:
                continue  # it went with the link around it
    for tag in code.filter_tags(
        matches=lambda node: str(node.tag).lower() in {"math", "gallery", "table", "timeline", "score"}
    ):
        try:
            code.remove(tag)
        except ValueError:
            continue
    text = code.strip_code(normalize=True, collapse=True, keep_template_params=False)
    text = re.sub(r"\(\s*[,;]?\s*\)", "", text)  # what a removed template leaves behind
    text = re.sub(r"[ \t\u00a0]+", " ", text)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


# ---------------------------------------------------------------- splits


def make_splits(documents: Sequence[Document], *, seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """A fresh assignment: about 30 test, 12 validation, 8 calibration documents, the rest recovery (>= 60 % of the text).

    Documents are shuffled by the hash of their title; the longest fifth stays in recovery, so that recovery keeps
    most of the text and no single article dominates a score.
    """
    longest_held_out = sorted(len(d.text) for d in documents)[int(len(documents) * 0.8)]
    order = sorted(documents, key=lambda d: hashlib.sha256(f"{seed}/{d.name}".encode()).hexdigest())
    eligible = [d for d in order if len(d.text) <= longest_held_out]
    held_out = {"test": eligible[:30], "validation": eligible[30:42], "calibration": eligible[42:50]}
    taken = {d.name for part in held_out.values() for d in part}
    held_out["recovery"] = [d for d in order if d.name not in taken]
    total = sum(len(d.text) for d in documents)
    kept = sum(len(d.text) for d in held_out["recovery"])
    if not all(held_out.values()) or kept < 0.6 * total:
        sizes = ", ".join(f"{len(part)} {split}" for split, part in held_out.items())
        raise ValueError(
            f"{len(documents)} documents of {total:,} characters give {sizes} documents, and recovery keeps {kept:,} characters: "
            "none may be empty and at least 60% of the text is wanted for recovery, so name a text of about 130 documents or more"
        )
    return {
        split: [{"title": d.name, "sha256": d.sha256} for d in sorted(part, key=lambda d: d.name)]
        for split, part in held_out.items()
    }


def split(documents: Sequence[Document], splits_file: Path = SPLITS_FILE) -> dict[str, list[Document]]:
    """The committed splits applied to these documents; a document whose text is not the committed one is an error."""
    by_name = {document.name: document for document in documents}
    parts: dict[str, list[Document]] = {}
    for name, entries in _read_splits(Path(splits_file)).items():
        parts[name] = []
        for title, sha256 in entries:
            document = by_name.get(title)
            if document is None or document.sha256 != sha256:
                state = "is missing" if document is None else "has another text"
                raise ValueError(
                    f"document {title!r} of split {name} in {splits_file} {state}: the text is not the one that the splits were made for"
                )
            parts[name].append(document)
    return parts


def _read_splits(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Split -> (title, sha256) of its documents."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        splits = {name: [(str(entry["title"]), str(entry["sha256"])) for entry in read[name]] for name in read}
        empty = [name for name in SPLITS if not splits[name]]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"splits {path} are damaged ({type(error).__name__}: {reason}): restore the file") from None
    if empty or set(splits) != set(SPLITS):
        raise ValueError(f"splits {path} are damaged: documents are wanted in {', '.join(SPLITS)}, and no other split")
    return splits


def split_named(name: str, *, cache: Path, assets: Path | None = None) -> dict[str, list[Document]]:
    """The splits of a named text: the committed ones of `wikipedia-excerpt`; WikiText-2's own, whose train articles give
    recovery and calibration; a fresh assignment for any other text of enough documents.

    A split is never read for another's purpose: `news-excerpt` is out of domain and has a test split alone.
    """
    if name == "wikipedia-excerpt":
        return split(load(name, cache=cache, assets=assets))
    if name == "wikitext-2" or (Path(name).is_dir() and list(Path(name).glob("train-*.parquet"))):
        parts = wikitext(None if name == "wikitext-2" else Path(name))
        train = [d for d in parts["train"] if len(d.text) >= MIN_DOCUMENT_CHARS]
        return {"recovery": train[8:], "calibration": train[:8], "validation": parts["validation"], "test": parts["test"]}
    documents = load(name, cache=cache, assets=assets)
    if name == "news-excerpt":
        return {"recovery": [], "calibration": [], "validation": [], "test": documents}
    by_name = {document.name: document for document in documents}
    return {part: [by_name[entry["title"]] for entry in entries] for part, entries in make_splits(documents).items()}


# ---------------------------------------------------------------- windows


def windows(
    documents: Sequence[Document], tokenizer: Any, *, seq_len: int, tokens_per_document: int | None = None, whole: bool = False
) -> Windows:
    """Cut each document's first `tokens_per_document` tokens (None: all) into windows of `seq_len`.

    `whole` keeps full windows only (for training); else a document's last window is padded and masked, up to the longest one.

    Raises ValueError when no window results, or when the tokenizer has neither BOS nor EOS.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise ValueError("the tokenizer has neither a BOS nor an EOS token to begin a window with")
    pieces, owner, n_bytes = [], [], []
    for index, document in enumerate(documents):
        encoded = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = encoded["input_ids"][:tokens_per_document]
        n_bytes.append(len(document.text[: encoded["offset_mapping"][len(ids) - 1][1]].encode()) if ids else 0)
        for at in range(0, len(ids), seq_len):
            piece = ids[at : at + seq_len]
            if len(piece) == seq_len or not whole:
                pieces.append(piece)
                owner.append(index)
    if not pieces:
        total = sum(len(d.text) for d in documents)
        raise ValueError(f"the text is shorter than one window: {total} characters give no window of seq_len={seq_len} tokens")
    longest = max(map(len, pieces))  # what is padding in every window would only be computed
    targets = torch.zeros(len(pieces), longest, dtype=torch.long)
    mask = torch.zeros(len(pieces), longest, dtype=torch.bool)
    for row, piece in enumerate(pieces):
        targets[row, : len(piece)] = torch.tensor(piece)
        mask[row, : len(piece)] = True
    inputs = torch.cat([torch.full((len(pieces), 1), start), targets[:, :-1]], dim=1)  # (n_windows, seq_len)
    return Windows(inputs, targets, mask, torch.tensor(owner), tuple(d.name for d in documents), tuple(n_bytes))


def draw(pool: Windows, *, n_tokens: int, seed: int) -> Windows:
    """A training sample of `n_tokens // seq_len` windows, each seed its own windows in its own order.

    Goes through the whole pool before any window comes again, each time in a new order.
    """
    wanted = n_tokens // pool.seq_len
    if wanted < 1:
        raise ValueError(f"n_tokens={n_tokens} is less than one window of {pool.seq_len} tokens")
    generator = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(len(pool), generator=generator) for _ in range(-(-wanted // len(pool)))]
    return pool.take(torch.cat(rounds)[:wanted])
