from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from depthprune_core import assets, text
from depthprune_core.models import BUNDLED
from depthprune_core.text import Document, Windows
from depthprune_study import places

SPLITS = json.loads(text.SPLITS_FILE.read_text(encoding="utf-8"))
MIXED = [
    Document("plain", "The cat sat on the mat, and then the dog sat on the cat. " * 3),
    Document("accents", "Żółta łódź płynęła; 東京都 の 天気 は 晴れ 😀😀 — naïve café. " * 2),
    Document("short", "Yes."),
]


@pytest.fixture(scope="module")
def articles() -> list[Document]:
    return text.load("wikipedia-excerpt", cache=places.cache(), assets=places.assets())


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, so a character can be cut in two."""
    return AutoTokenizer.from_pretrained(BUNDLED / "gpt2-mini")


# ---------------------------------------------------------------- splits


def test_splits_share_no_document() -> None:
    entries = [(entry["title"], entry["sha256"]) for part in SPLITS.values() for entry in part]
    assert len({title for title, _ in entries}) == len({sha256 for _, sha256 in entries}) == len(entries) == 96


def test_splits_are_as_large_as_the_protocol_says() -> None:
    assert {name: len(part) for name, part in SPLITS.items()} == {
        "test": 30,
        "validation": 12,
        "calibration": 8,
        "recovery": 46,
    }


def test_the_hashes_hold_against_the_real_text(articles: list[Document]) -> None:
    parts = text.split(articles)
    assert sorted(d.name for part in parts.values() for d in part) == sorted(d.name for d in articles)


def test_recovery_keeps_most_of_the_characters(articles: list[Document]) -> None:
    recovery = sum(len(d.text) for d in text.split(articles)["recovery"])
    assert recovery >= 0.6 * sum(len(d.text) for d in articles)


def test_no_article_is_shorter_than_a_document_may_be(articles: list[Document]) -> None:
    assert min(len(d.text) for d in articles) >= text.MIN_DOCUMENT_CHARS


def test_the_committed_splits_are_those_that_the_code_makes(articles: list[Document]) -> None:
    assert text.make_splits(articles) == SPLITS


def test_a_changed_text_is_refused_and_named(articles: list[Document]) -> None:
    first = articles[0]
    changed = [replace(first, text=first.text + " "), *articles[1:]]
    with pytest.raises(ValueError, match=rf"document {first.name!r} of split \w+ in .*splits\.json has another text"):
        text.split(changed)


def test_a_missing_document_is_refused_and_named(articles: list[Document]) -> None:
    with pytest.raises(ValueError, match=rf"document {articles[0].name!r} of split \w+ in .*splits\.json is missing"):
        text.split(articles[1:])


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"[]", b"{}", b'{"recovery": []}', b'{"recovery": 3}', b'{"test": [{"title": "Anarchism"}]}',
        json.dumps({**SPLITS, "calibration": []}).encode(), json.dumps({**SPLITS, "more": SPLITS["test"]}).encode(),
    ],
)  # fmt: skip
def test_damaged_splits_are_told_in_a_sentence_that_names_the_file(
    tmp_path: Path, articles: list[Document], content: bytes
) -> None:
    path = tmp_path / "splits.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        text.split(articles, path)
    assert str(error.value).startswith(f"splits {path} are damaged") and "\n" not in str(error.value)


def test_a_damaged_cleaned_text_is_cleaned_again(
    tmp_path: Path, articles: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wikipedia-excerpt.json").write_text("[]")
    monkeypatch.setattr(text, "fetch", lambda asset, **where: Path("no such dump"))
    monkeypatch.setattr(text, "_pages", lambda dump: [("One", "other text")])
    with pytest.raises(
        ValueError, match=r"expected a5cf88f7[0-9a-f]+: install the mwparserfromhell version that constraints\.txt names"
    ):
        text.load("wikipedia-excerpt", cache=tmp_path)


@pytest.mark.parametrize(("count", "length"), [(1, 0), (1, 50_000), (40, 3_000), (45, 3_000)])
def test_a_text_of_too_few_documents_is_refused_in_a_sentence(count: int, length: int) -> None:
    documents = [Document(f"{i}", "x" * length) for i in range(count)]
    with pytest.raises(ValueError, match=rf"{count} documents .*at least 60% .*is wanted"):
        text.make_splits(documents)


def test_the_out_of_domain_text_has_a_test_split_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "news").write_text("One story.\n\nAnother story.\n", encoding="utf-8")
    monkeypatch.setattr(text, "fetch", lambda asset, **where: tmp_path / "news")
    parts = text.split_named("news-excerpt", cache=tmp_path)
    assert [d.text for d in parts.pop("test")] == ["One story.", "Another story."]
    assert set(map(len, parts.values())) == {0}


def test_an_unknown_text_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match="text 'no-such-text' is not known: name wikipedia-excerpt, news-excerpt, wikitext-2, a text file or a folder",
    ):
        text.load("no-such-text", cache=tmp_path)


def test_a_file_that_is_no_utf8_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    for name in (tmp_path, tmp_path / "latin.txt"):
        with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8 text"):
            text.load(str(name), cache=tmp_path)


def test_a_folder_of_text_files_gives_one_document_a_file(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first", encoding="utf-8")
    assert text.load(str(tmp_path), cache=tmp_path) == [Document("a.txt", "first"), Document("b.txt", "second")]


# ---------------------------------------------------------------- windows


def tokens_of(windows: Windows, document: int) -> list[int]:
    """What is scored of a document, in order."""
    rows = windows.document == document
    return windows.targets[rows][windows.mask[rows]].tolist()


@pytest.mark.parametrize("seq_len", [8, 13, 400])
def test_every_token_of_a_document_is_scored_exactly_once(tokenizer: PreTrainedTokenizerFast, seq_len: int) -> None:
    windows = text.windows(MIXED, tokenizer, seq_len=seq_len)
    for index, document in enumerate(MIXED):
        assert tokens_of(windows, index) == tokenizer(document.text, add_special_tokens=False).input_ids


def test_a_window_never_crosses_documents(tokenizer: PreTrainedTokenizerFast) -> None:
    windows = text.windows(MIXED, tokenizer, seq_len=8)
    for row, owner in enumerate(windows.document.tolist()):
        assert tokenizer.decode(windows.targets[row][windows.mask[row]]).strip("\ufffd") in MIXED[owner].text


def test_every_window_begins_with_bos_and_then_sees_what_it_has_predicted(tokenizer: PreTrainedTokenizerFast) -> None:
    windows = text.windows(MIXED, tokenizer, seq_len=8)
    assert windows.inputs[:, 0].tolist() == [tokenizer.bos_token_id] * len(windows)
    assert torch.equal(windows.inputs[:, 1:], windows.targets[:, :-1])


def test_padding_is_masked_and_only_at_the_end_of_a_document(tokenizer: PreTrainedTokenizerFast) -> None:
    windows = text.windows(MIXED, tokenizer, seq_len=8)
    for index in range(len(MIXED)):
        rows = windows.mask[windows.document == index]
        assert rows[:-1].all()
        assert rows[-1].int().diff().max() <= 0  # True ... True False ... False
    assert windows.n_tokens == sum(len(tokenizer(d.text, add_special_tokens=False).input_ids) for d in MIXED)


def test_a_tokenizer_without_bos_begins_with_eos() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token, tokenizer.eos_token = None, "w7"
    windows = text.windows([Document("a", "w1 w2 w3")], tokenizer, seq_len=8)
    assert windows.inputs[0].tolist() == [7, 1, 2]


def test_a_tokenizer_with_neither_bos_nor_eos_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a BOS nor an EOS token"):
        text.windows([Document("a", "w1 w2 w3")], tokenizer, seq_len=8)


def test_the_bytes_are_those_of_the_whole_text_when_all_of_it_is_scored(tokenizer: PreTrainedTokenizerFast) -> None:
    windows = text.windows(MIXED, tokenizer, seq_len=8)
    assert windows.n_bytes == tuple(len(d.text.encode()) for d in MIXED)


@pytest.mark.parametrize("n", [1, 5, 17])
def test_the_bytes_are_those_of_the_scored_text(tokenizer: PreTrainedTokenizerFast, n: int) -> None:
    windows = text.windows(MIXED[:1], tokenizer, seq_len=8, tokens_per_document=n)
    assert windows.n_tokens == n
    assert windows.n_bytes == (len(tokenizer.decode(tokens_of(windows, 0)).encode()),)


def test_only_the_first_tokens_of_a_document_are_scored(tokenizer: PreTrainedTokenizerFast) -> None:
    few, all_of_it = (text.windows(MIXED, tokenizer, seq_len=8, tokens_per_document=n) for n in (11, None))
    for index in range(len(MIXED)):
        assert tokens_of(few, index) == tokens_of(all_of_it, index)[:11]


def test_no_window_is_wider_than_the_longest_text(tokenizer: PreTrainedTokenizerFast) -> None:
    narrow, wide = (text.windows(MIXED, tokenizer, seq_len=n, tokens_per_document=11) for n in (11, 64))
    assert wide.inputs.shape == narrow.inputs.shape == (len(MIXED), 11)
    assert wide.token_hash == narrow.token_hash


def test_windows_to_train_on_are_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    windows = text.windows(MIXED, tokenizer, seq_len=8, whole=True)
    assert windows.mask.all()
    assert len(windows) == sum(len(tokenizer(d.text, add_special_tokens=False).input_ids) // 8 for d in MIXED)


@pytest.mark.parametrize(("documents", "whole"), [(MIXED[2:], True), ([Document("empty", "")], False), ([], False)])
def test_a_text_shorter_than_one_window_is_refused(
    tokenizer: PreTrainedTokenizerFast, documents: list[Document], whole: bool
) -> None:
    with pytest.raises(ValueError, match=r"shorter than one window: \d+ characters give no window of seq_len=64 tokens"):
        text.windows(documents, tokenizer, seq_len=64, whole=whole)


def test_batches_go_through_every_window_in_order(windows: Windows) -> None:
    batches = list(windows.batches(2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([batch.targets for batch in batches]), windows.targets)


# ---------------------------------------------------------------- draws


@pytest.fixture
def pool(tokenizer: PreTrainedTokenizerFast) -> Windows:
    """Windows that all differ."""
    words = " ".join(f"number {i} is not {i + 1};" for i in range(60))
    return text.windows([Document("count", words)], tokenizer, seq_len=16, whole=True)


def rows_of(pool: Windows, sample: Windows) -> list[int]:
    return [next(i for i in range(len(pool)) if torch.equal(pool.targets[i], row)) for row in sample.targets]


def test_the_same_seed_draws_the_same_tokens(pool: Windows) -> None:
    assert text.draw(pool, n_tokens=160, seed=3).token_hash == text.draw(pool, n_tokens=160, seed=3).token_hash


def test_each_seed_draws_its_own_windows_in_its_own_order(pool: Windows) -> None:
    draws = [rows_of(pool, text.draw(pool, n_tokens=160, seed=seed)) for seed in range(4)]
    assert len({tuple(draw) for draw in draws}) == len({frozenset(draw) for draw in draws}) == 4


def test_the_whole_pool_comes_before_any_window_comes_again(pool: Windows) -> None:
    rows = rows_of(pool, text.draw(pool, n_tokens=(2 * len(pool) + 3) * 16, seed=0))
    first, second, third = rows[: len(pool)], rows[len(pool) : 2 * len(pool)], rows[2 * len(pool) :]
    assert sorted(first) == sorted(second) == list(range(len(pool)))
    assert first != second
    assert len(third) == 3


def test_a_draw_is_as_long_as_it_was_asked_for(pool: Windows) -> None:
    assert text.draw(pool, n_tokens=100, seed=0).n_tokens == 96  # six windows of 16


def test_a_draw_leaves_the_global_random_state_alone(pool: Windows) -> None:
    before = torch.random.get_rng_state()
    text.draw(pool, n_tokens=160, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_draw_of_less_than_one_window_is_refused(pool: Windows) -> None:
    with pytest.raises(ValueError, match="n_tokens=15 is less than one window of 16 tokens"):
        text.draw(pool, n_tokens=15, seed=0)


def test_the_token_hash_knows_the_order(pool: Windows) -> None:
    assert pool.take(torch.tensor([0, 1])).token_hash != pool.take(torch.tensor([1, 0])).token_hash


def test_the_token_hash_knows_how_the_text_is_cut_and_where_it_is_from(tokenizer) -> None:
    words = " ".join(f"number {i}" for i in range(60))
    long, short = (text.windows([Document("a", words)], tokenizer, seq_len=n, tokens_per_document=32) for n in (16, 8))
    assert torch.equal(long.targets.flatten(), short.targets.flatten()) and bool(long.mask.all() & short.mask.all())
    other = text.windows([Document("b", words)], tokenizer, seq_len=16, tokens_per_document=32)
    assert len({long.token_hash, short.token_hash, other.token_hash}) == 3


# ---------------------------------------------------------------- WikiText-2's layout


LINES = [
    "",
    " = Robert Boulter = \n",
    "",
    " He was born . \n",
    " = = Career = = \n",
    " = = = Stage = = = \n",
    " x = y = z \n",
    " = Du Fu = \n",
    " Poet . \n",
]


@pytest.fixture
def wikitext_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    folder = tmp_path / "wikitext"
    folder.mkdir()
    lines = {"train": LINES, "validation": LINES[:5], "test": LINES[7:]}
    for split, rows in lines.items():
        pyarrow.parquet.write_table(pyarrow.table({"text": rows}), folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_an_article_begins_at_a_heading_and_not_at_a_section(wikitext_folder: Path) -> None:
    parts = text.wikitext(wikitext_folder)
    assert {split: [d.name for d in part] for split, part in parts.items()} == {
        "train": ["train/Robert Boulter", "train/Du Fu"],
        "validation": ["validation/Robert Boulter"],
        "test": ["test/Du Fu"],
    }
    assert parts["train"][0].text == "= Robert Boulter = \n He was born . \n = = Career = = \n = = = Stage = = = \n x = y = z"


def test_a_folder_without_one_of_the_splits_is_refused(wikitext_folder: Path) -> None:
    next(wikitext_folder.glob("test-*")).unlink()
    with pytest.raises(ValueError, match=r"has no test-\*\.parquet: it does not have WikiText-2's layout"):
        text.wikitext(wikitext_folder)


def test_a_file_that_is_no_parquet_is_refused_by_name(wikitext_folder: Path) -> None:
    (path,) = wikitext_folder.glob("test-*")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{path} cannot be read as parquet with a column text "):
        text.wikitext(wikitext_folder)


def test_a_local_copy_of_wikitext_is_read_itself_and_not_from_a_cache(wikitext_folder: Path) -> None:
    text.wikitext(wikitext_folder)
    assert not list(wikitext_folder.parent.glob("datasets-cache/**/*.arrow"))


def test_wikitext_keeps_its_own_splits(wikitext_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = {part: [Document(f"{part}/{i}", "x" * 2_000) for i in range(10)] for part in ("train", "validation", "test")}
    long["train"].append(Document("train/short", "x" * 1_999))
    monkeypatch.setattr(text, "wikitext", lambda folder: long)
    parts = text.split_named(str(wikitext_folder), cache=wikitext_folder)
    assert {name: [d.name for d in part] for name, part in parts.items()} == {
        "recovery": ["train/8", "train/9"],
        "calibration": [f"train/{i}" for i in range(8)],
        "validation": [f"validation/{i}" for i in range(10)],
        "test": [f"test/{i}" for i in range(10)],
    }


# ---------------------------------------------------------------- cleaning

WIKI = """{{Infobox person|name=Ada}}
'''Ada Lovelace''' ({{IPA|x}}; 1815<ref name="b">Born in {{cite|London}}</ref>) was a [[mathematician|writer of programs]]<ref name="b" />.
[[File:Ada.jpg|thumb|A portrait of [[Ada]]]]
<!-- a comment -->
{| class="wikitable"
| cell one || cell two
|}
== Work ==
She wrote <math>x^2</math> and&nbsp;notes.
<gallery>Image:a.png</gallery>

[[Category:Mathematicians]]
== References ==
{{reflist}}
* A book
"""


def test_cleaning_keeps_running_text_and_nothing_else() -> None:
    assert text._clean(WIKI) == "Ada Lovelace (; 1815) was a writer of programs.\nWork\nShe wrote and notes."


def test_redirects_and_talk_pages_are_passed_over(tmp_path: Path) -> None:
    import bz2

    def page(title: str, namespace: int, more: str = "") -> str:
        return f"<page><title>{title}</title><ns>{namespace}</ns>{more}<revision><text>of {title}</text></revision></page>"

    pages = page("One", 0) + page("Talk:One", 1) + page("Uno", 0, "<redirect title='One'/>") + page("Two", 0)
    dump = tmp_path / "dump.bz2"
    dump.write_bytes(bz2.compress(f"<mediawiki xmlns='http://www.mediawiki.org/xml/export-0.10/'>{pages}</mediawiki>".encode()))
    assert list(text._pages(dump)) == [("One", "of One"), ("Two", "of Two")]


def test_the_named_files_are_pinned() -> None:
    for file in (text._WIKIPEDIA, text._NEWS):
        assert isinstance(file, assets.WheelFile)
        assert "==" in file.requirement
        assert len(file.sha256) == 64
    assert len(text._WIKITEXT["revision"]) == 40
