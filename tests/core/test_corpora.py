"""Named texts, files, folders and data sets: reading them, and errors that say what to do."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from depthprune_core import corpora, reading
from depthprune_core.text import Document

ROWS = [{"id": i, "text": f"Row {i}, with a comma.", "title": f"Title {i}"} for i in range(3)]


def parquet(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def csv(path: Path, rows: list[dict]) -> Path:
    lines = [",".join(rows[0])]
    lines += [",".join(f'"{value}"' for value in row.values()) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def array(path: Path, rows: list[dict]) -> Path:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def load(path: Path | str, column: str = "") -> list[Document]:
    return corpora.load(f"{path}:{column}" if column else str(path), cache=Path("no-such-cache"))


# ---------------------------------------------------------------- shipped and fetched


def test_the_shipped_articles_are_long_and_named_with_their_source_and_licence():
    content = gzip.decompress(corpora.WIKIPEDIA.read_bytes())
    articles = load("wikipedia-excerpt")
    assert len(articles) == 96 and articles[0].name == "Anarchism"
    assert min(len(article.text) for article in articles) >= corpora.MIN_DOCUMENT_CHARS
    notice = corpora.WIKIPEDIA.with_name("README.md").read_text(encoding="utf-8")
    links = [f"- [{title}](https://en.wikipedia.org/w/index" for title, _ in json.loads(content)]
    assert len(links) == 106 and all(link in notice for link in links)
    assert "CC BY-SA 4.0" in notice and corpora.WIKIPEDIA_SHA256 in notice and "gensim" in notice


@pytest.mark.parametrize("damage", [lambda b: b[:9_000], lambda b: gzip.compress(b"[]")])
def test_a_damaged_shipped_text_is_refused_in_a_sentence(tmp_path, damage):
    path = tmp_path / "text.json.gz"
    path.write_bytes(damage(corpora.WIKIPEDIA.read_bytes()))
    with pytest.raises(ValueError, match=r"text\.json\.gz is damaged .*: install depthprune again"):
        corpora.wikipedia(path)


def test_news_has_one_document_per_line(tmp_path, monkeypatch):
    (tmp_path / "news").write_text("One story.\n\nAnother story.\n", encoding="utf-8")
    monkeypatch.setattr(corpora, "fetch", lambda asset, *, cache: tmp_path / "news")
    expected = [Document("news-000", "One story."), Document("news-002", "Another story.")]
    assert load("news-excerpt") == expected


@pytest.mark.parametrize("name", ["no-such-text", "no/such/file.jsonl", "folder/missing.txt:text"])
def test_an_unknown_text_is_refused_in_a_sentence(name):
    sentence = r"text '.*' is not known: name wikipedia-excerpt, .*:column"
    with pytest.raises(ValueError, match=sentence):
        load(name)


# ---------------------------------------------------------------- WikiText-2


LINES = [
    "",
    " = Robert Boulter = \n",
    " He was born . \n",
    " = = Career = = \n",
    " x = y = z \n",
    " = Du Fu = \n",
    " Poet . \n",
]


def test_an_article_begins_at_a_heading_and_not_at_a_section(tmp_path, monkeypatch):
    folder = tmp_path / "wikitext-2-raw-v1"
    for split, lines in {"train": LINES, "validation": LINES[:4], "test": LINES[5:]}.items():
        parquet(folder / f"{split}-00000-of-00001.parquet", [{"text": line} for line in lines])
    monkeypatch.setattr(corpora, "snapshot", lambda *name, **options: tmp_path)
    parts = corpora.wikitext()
    assert {split: [d.name for d in part] for split, part in parts.items()} == {
        "train": ["train/Robert Boulter", "train/Du Fu"],
        "validation": ["validation/Robert Boulter"],
        "test": ["test/Du Fu"],
    }
    expected = "= Robert Boulter = \n He was born . \n = = Career = = \n x = y = z"
    assert parts["train"][0].text == expected
    assert [d.name for d in load("wikitext-2")][-1] == "test/Du Fu"


def test_without_a_network_wikitext_is_refused_in_a_sentence(monkeypatch):
    """Offline, as in every test."""
    with pytest.raises(RuntimeError, match=r"could not fetch wikitext-2 .*check the network"):
        corpora.wikitext()


# ---------------------------------------------------------------- files and folders


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.jsonl", jsonl), ("a.json", array), ("a.csv", csv), ("a.parquet", parquet)],
)
def test_the_text_column_is_read_and_nothing_else(tmp_path, name, write):
    path = write(tmp_path / name, ROWS)
    assert [d.text for d in load(path)] == [row["text"] for row in ROWS]
    assert [d.text for d in load(path, "title")] == ["Title 0", "Title 1", "Title 2"]
    assert load(path)[2].name == f"{path.name} row 2"


def test_a_plain_text_has_no_columns_and_its_suffix_may_be_in_capitals(tmp_path):
    (tmp_path / "A.TXT").write_text("First.")
    assert [d.text for d in load(tmp_path)] == ["First."]
    with pytest.raises(ValueError, match="plain text and has no column 'text'"):
        load(tmp_path / "A.TXT", "text")


@pytest.mark.parametrize("name", ["notes[1].jsonl", "p?.jsonl", "a*.jsonl"])
def test_a_file_name_is_no_pattern(tmp_path, name):
    for other in ("notes1.jsonl", "pa.jsonl", "ab.jsonl"):
        jsonl(tmp_path / other, [{"text": "another file"}])
    assert [d.text for d in load(jsonl(tmp_path / name, ROWS))] == [row["text"] for row in ROWS]


def test_a_file_name_that_datasets_would_take_apart_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x::y\.jsonl cannot be read: rename it without '::'"):
        load(jsonl(tmp_path / "x::y.jsonl", ROWS))


def test_an_empty_file_does_not_spoil_its_folder(tmp_path):
    jsonl(tmp_path / "a.jsonl", [])
    jsonl(tmp_path / "b.jsonl", ROWS)
    assert [d.text for d in load(tmp_path)] == [row["text"] for row in ROWS]


def test_a_packed_file_is_read_like_the_same_file_unpacked(tmp_path):
    plain = jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"First."))
    assert [d.text for d in load(tmp_path / "packed.jsonl.gz")] == [row["text"] for row in ROWS]
    assert load(tmp_path / "b.txt.gz") == [Document("b.txt.gz", "First.")]
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"First." * 99)[:-9])
    with pytest.raises(ValueError, match=r"cut\.txt\.gz is no whole gzip file"):
        load(tmp_path / "cut.txt.gz")


def test_a_folder_gives_all_its_files_by_name(tmp_path):
    (tmp_path / "b.md").write_text("Second.")
    (tmp_path / "a.txt").write_text("First.", encoding="utf-8-sig")  # the mark goes
    jsonl(tmp_path / "c.jsonl", ROWS[:1])
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "e.txt").write_text("Last.")
    (tmp_path / "README.md").write_text("About this folder.")
    (tmp_path / ".hidden.txt").write_text("Hidden.")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    found = load(tmp_path)
    assert [d.name for d in found] == ["a.txt", "b.md", "c.jsonl row 0", "d/e.txt"]
    assert found[0] == Document("a.txt", "First.")


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ({"prompt": "a", "answer": "b"}, "", r"several columns \(prompt, answer\): name the one"),
        ({"prompt": "a", "answer": "b"}, "body", r"no column 'body': it has prompt, answer"),
        ({"text": ["a", "b"], "title": "c"}, "", r"column 'text' holds list, not text, in row 0"),
        ({"n": 1, "text": "a"}, "n", r"column 'n' holds int, not text, in row 0: .* n, text"),
    ],
)
def test_an_unclear_column_is_refused_with_the_list_of_columns(tmp_path, row, column, message):
    with pytest.raises(ValueError, match=message):
        load(jsonl(tmp_path / "a.jsonl", [row]), column)


def test_the_only_column_of_strings_needs_no_name_and_empty_rows_are_passed_over(tmp_path):
    rows = [{"n": 1, "a": "One."}, {"n": 2, "a": ""}, {"n": 3, "a": None}, {"n": 4, "a": "Two."}]
    assert [d.text for d in load(jsonl(tmp_path / "a.jsonl", rows))] == ["One.", "Two."]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"holds no text"),
        ("a.txt", "café".encode("latin-1"), r"not UTF-8 text \(byte 3\).*save it as UTF-8"),
        ("a.txt", pickle.dumps([1.5, "x"] * 3), r"not UTF-8 text"),
        ("a.txt", b"one\0two", r"binary, not text"),
        (
            "a.txt",
            b'{"text": "a"}\n{"text": "b"}\n',
            r"JSON, not prose: rename it to a.jsonl",
        ),
        ("a.md", b'[\n {"text": "a"},\n {"text": "b"}]', r"JSON, not prose: rename it to a.json$"),
        ("a.jsonl", b"", r"holds no text"),
        (
            "a.csv",
            b"id;text\n0;Some words\n",
            r"one column, 'id;text': the first row",
        ),
        ("a.csv", b'"' + b"Some words. " * 9 + b'"\n"More."\n', r"the first row must name the col"),
        ("a.docx", b"PK\3\4", r"no text that can be read here: give UTF-8 text \(.txt, .md\)"),
        ("a.jsonl", b'{"text": "a"}\n{"te', r"a\.jsonl cannot be read as jsonl"),
        ("a.csv", "text,n\ncafé,1".encode("latin-1"), r"cannot be read as csv \(UnicodeDecode"),
        ("a.parquet", b"PAR1", r"cannot be read as parquet"),
    ],
)
def test_a_file_that_is_not_text_is_refused_in_one_sentence(
    tmp_path, capfd, name, content, message
):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert capfd.readouterr().err == ""  # datasets would print what the sentence says already


def test_a_folder_without_text_is_refused_with_what_is_wanted(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"\0" * 10)
    with pytest.raises(ValueError, match=r"holds no text: it needs files with UTF-8 text"):
        load(tmp_path)


# ---------------------------------------------------------------- data sets of the hub


@pytest.fixture
def asked(tmp_path, monkeypatch) -> list[dict]:
    """Requests to the hub, which is replaced by a folder with the layout of a data set."""
    folder = tmp_path / "elsewhere" / "name"
    parquet(folder / "data" / "train-00000-of-00002.parquet", ROWS[:2])
    parquet(folder / "data" / "train-00001-of-00002.parquet", ROWS[2:])
    parquet(folder / "data" / "test-00000-of-00001.parquet", [{**ROWS[0], "text": "Test."}])
    stream, sources = reading._stream, []

    def of_folder(source: dict, failure: str):
        sources.append(source)
        return stream({"path": str(folder)}, failure)

    monkeypatch.setattr(reading, "_stream", of_folder)
    return sources


def test_a_data_set_of_the_hub_is_streamed_by_column(asked, monkeypatch):
    assert [d.text for d in load("org/name")] == [row["text"] for row in ROWS]
    assert [d.text for d in load("org/name/config:title")] == ["Title 0", "Title 1", "Title 2"]
    assert asked == [{"path": "org/name"}, {"path": "org/name", "name": "config"}]
    monkeypatch.setattr(reading, "STREAMED_CHARS", 30)
    assert len(load("org/name:text")) == 2
    with pytest.raises(ValueError, match="org/name has no column 'body': it has id, text, title"):
        load("org/name:body")


def test_a_data_set_that_cannot_be_fetched_is_refused_in_a_sentence():
    """Offline, as in every test."""
    sentence = r"org/no-such-name is no file or folder here, and could not be streamed .* \("
    with pytest.raises(ValueError, match=sentence):
        load("org/no-such-name:text")


@pytest.mark.parametrize(
    ("name", "parts"),
    [("a.jsonl:body", ("a.jsonl", "body")), (r"C:\texts\a.txt", (r"C:\texts\a.txt", ""))],
)
def test_a_column_stands_behind_the_last_colon(name, parts):
    assert reading.parted(name) == parts
