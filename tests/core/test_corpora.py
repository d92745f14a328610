"""Named texts, files, folders and data sets: what is read, and what is refused with what to do."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from depthprune_core import corpora, reading
from depthprune_core.text import Document

ROWS = [{"id": i, "text": f"Row {i}, with a comma.", "title": f"Title {i}"} for i in range(3)]


def parquet(path: Path, rows: list[dict]) -> Path:
    import pyarrow
    import pyarrow.parquet

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


def zipped(write: Callable, path: Path, rows: list[dict]) -> Path:
    plain = write(path.with_suffix(""), rows)
    path.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return path


def load(path: Path | str, column: str = "") -> list[Document]:
    return corpora.load(f"{path}:{column}" if column else str(path), cache=Path("no-such-cache"))


# ---------------------------------------------------------------- shipped and fetched


def test_the_shipped_articles_are_the_cleaned_text_of_the_first_edition():
    content = gzip.decompress(corpora.WIKIPEDIA.read_bytes())
    assert hashlib.sha256(content).hexdigest() == corpora.WIKIPEDIA_SHA256
    assert gzip.compress(content, 9, mtime=0)[:8] == corpora.WIKIPEDIA.read_bytes()[:8]  # no date
    articles = load("wikipedia-excerpt")
    assert len(articles) == 96 and articles[0].name == "Anarchism"
    assert min(len(article.text) for article in articles) >= corpora.MIN_DOCUMENT_CHARS


def test_every_shipped_article_is_named_with_its_source_and_licence():
    notice = corpora.WIKIPEDIA.with_name("README.md").read_text(encoding="utf-8")
    titles = [title for title, _ in json.loads(gzip.decompress(corpora.WIKIPEDIA.read_bytes()))]
    assert len(titles) == 106
    assert all(
        f"- [{title}](https://en.wikipedia.org/w/index.php?title=" in notice for title in titles
    )
    assert "CC BY-SA 4.0" in notice and corpora.WIKIPEDIA_SHA256 in notice and "gensim" in notice


def test_cleaning_keeps_running_text_and_nothing_else(monkeypatch):
    """Of the tool that made the shipped text; the product does without its parser."""
    pytest.importorskip("mwparserfromhell")
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "tools")
    from clean_wikipedia import clean

    wiki = """{{Infobox person|name=Ada}}
'''Ada Lovelace''' ({{IPA|x}}; 1815<ref name="b">Born in {{cite|London}}</ref>) was a
[[mathematician|writer of programs]]<ref name="b" />. [[File:Ada.jpg|thumb|A portrait of [[Ada]]]]
<!-- a comment -->
{| class="wikitable"
| cell one || cell two
|}
== Work ==
She wrote <math>x^2</math> and&nbsp;notes.
<gallery>Image:a.png</gallery>
[[Category:Mathematicians]]
== References ==
* A book
"""
    expected = "Ada Lovelace (; 1815) was a\nwriter of programs.\nWork\nShe wrote and notes."
    assert clean(wiki) == expected


@pytest.mark.parametrize("damage", ["cut", "other", "no gzip"])
def test_a_damaged_shipped_text_is_told_in_a_sentence(tmp_path, damage):
    whole, path = corpora.WIKIPEDIA.read_bytes(), tmp_path / "text.json.gz"
    other = {"cut": whole[:9_000], "other": gzip.compress(b"[]"), "no gzip": b"[]"}
    path.write_bytes(other[damage])
    with pytest.raises(ValueError, match=r"text\.json\.gz is damaged .*: install depthprune again"):
        corpora.wikipedia(path)


def test_news_is_one_document_a_line(tmp_path, monkeypatch):
    (tmp_path / "news").write_text("One story.\n\nAnother story.\n", encoding="utf-8")
    monkeypatch.setattr(corpora, "fetch", lambda asset, *, cache: tmp_path / "news")
    expected = [Document("news-000", "One story."), Document("news-002", "Another story.")]
    assert load("news-excerpt") == expected


@pytest.mark.parametrize("name", ["no-such-text", "no/such/file.jsonl", "folder/missing.txt:text"])
def test_an_unknown_text_is_refused_in_a_sentence(name):
    with pytest.raises(
        ValueError, match=r"text '.*' is not known: name wikipedia-excerpt, .*:column"
    ):
        load(name)


# ---------------------------------------------------------------- WikiText-2's layout


LINES = [
    "",
    " = Robert Boulter = \n",
    " He was born . \n",
    " = = Career = = \n",
    " x = y = z \n",
    " = Du Fu = \n",
    " Poet . \n",
]


@pytest.fixture
def wikitext_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "wikitext"
    for split, lines in {"train": LINES, "validation": LINES[:4], "test": LINES[5:]}.items():
        parquet(folder / f"{split}-00000-of-00001.parquet", [{"text": line} for line in lines])
    return folder


def test_an_article_begins_at_a_heading_and_not_at_a_section(wikitext_folder):
    parts = corpora.wikitext(str(wikitext_folder))
    assert {split: [d.name for d in part] for split, part in parts.items()} == {
        "train": ["train/Robert Boulter", "train/Du Fu"],
        "validation": ["validation/Robert Boulter"],
        "test": ["test/Du Fu"],
    }
    expected = "= Robert Boulter = \n He was born . \n = = Career = = \n x = y = z"
    assert parts["train"][0].text == expected
    assert [d.name for d in load(wikitext_folder)][-1] == "test/Du Fu"


def test_a_wikitext_folder_with_a_missing_or_damaged_split_is_refused_by_name(wikitext_folder):
    (path,) = wikitext_folder.glob("test-*")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{path} cannot be read as parquet"):
        corpora.wikitext(str(wikitext_folder))
    path.unlink()
    with pytest.raises(ValueError, match=r"has no test-\*\.parquet: it does not have WikiText-2's"):
        corpora.wikitext(str(wikitext_folder))


def test_wikitext_without_a_hub_says_what_to_do(monkeypatch):
    def offline(*where, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(corpora, "snapshot", offline)
    with pytest.raises(RuntimeError, match=r"could not fetch wikitext-2 .*name a local folder"):
        load("wikitext-2")


# ---------------------------------------------------------------- files of one's own


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.jsonl", jsonl), ("a.json", array), ("a.csv", csv), ("a.parquet", parquet)],
)
@pytest.mark.parametrize("is_zipped", [False, True])
def test_the_text_column_is_read_and_nothing_else(tmp_path, name, write, is_zipped):
    if is_zipped and name == "a.parquet":
        pytest.skip("parquet is compressed in itself")
    path = tmp_path / (f"{name}.gz" if is_zipped else name)
    path = zipped(write, path, ROWS) if is_zipped else write(path, ROWS)
    assert [d.text for d in load(path)] == [row["text"] for row in ROWS]
    assert [d.text for d in load(path, "title")] == ["Title 0", "Title 1", "Title 2"]
    assert load(path)[2].name == f"{path.name} row 2"


def test_plain_files_are_one_document_each(tmp_path):
    (tmp_path / "a.txt").write_text("First.", encoding="utf-8-sig")  # the mark goes
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("Zażółć.".encode()))
    assert load(tmp_path / "a.txt") == [Document("a.txt", "First.")]
    assert load(tmp_path / "b.txt.gz") == [Document("b.txt.gz", "Zażółć.")]


def test_a_folder_gives_all_its_files_by_name(tmp_path):
    (tmp_path / "b.md").write_text("Second.")
    (tmp_path / "a.txt").write_text("First.")
    jsonl(tmp_path / "c.jsonl", ROWS[:1])
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "e.txt").write_text("Last.")
    (tmp_path / "README.md").write_text("About this folder.")
    (tmp_path / ".hidden.txt").write_text("Hidden.")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    names = ["a.txt", "b.md", "c.jsonl row 0", "d/e.txt"]
    assert [document.name for document in load(tmp_path)] == names


def test_a_folder_without_text_is_refused_with_what_is_wanted(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"\0" * 10)
    with pytest.raises(ValueError, match=r"holds no text: it needs files with UTF-8 text"):
        load(tmp_path)


def test_the_only_column_of_strings_needs_no_name(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"id": 1, "content": "Alone."}])
    assert load(path)[0].text == "Alone."


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        (
            {"prompt": "a", "answer": "b"},
            "",
            r"has several columns \(prompt, answer\): name the one with",
        ),
        ({"prompt": "a", "answer": "b"}, "body", r"no column 'body': it has prompt, answer"),
        ({"text": ["a", "b"], "title": "c"}, "", r"column 'text' holds list, not text, in row 0"),
        ({"n": 1, "m": 2}, "", r"has several columns \(n, m\)"),
        ({"n": 1, "text": "a"}, "n", r"column 'n' holds int, not text, in row 0: .* n, text"),
    ],
)
def test_an_unclear_column_is_refused_with_the_list_of_columns(tmp_path, row, column, message):
    with pytest.raises(ValueError, match=message):
        load(jsonl(tmp_path / "a.jsonl", [row]), column)


def test_empty_rows_are_passed_over_and_an_empty_text_is_refused(tmp_path):
    rows = [{"text": "One."}, {"text": ""}, {"text": None}, {"text": "Two."}]
    assert [d.text for d in load(jsonl(tmp_path / "a.jsonl", rows))] == ["One.", "Two."]
    for path in (jsonl(tmp_path / "b.jsonl", rows[1:3]), tmp_path / "empty.txt"):
        path.touch()
        with pytest.raises(ValueError, match=r"holds no text|several columns"):
            load(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "café".encode("latin-1"), r"not UTF-8 text \(byte 3\).*iconv -f LATIN1 -t UTF-8"),
        ("a.txt", "text".encode("utf-16"), r"iconv -f UTF-16 -t UTF-8 a\.txt"),
        ("a.txt", pickle.dumps([1.5, "x"] * 3), r"not UTF-8 text"),
        ("a.txt", b"text\0\0", r"binary, not text: give UTF-8 text \(\.txt, \.md\), \.jsonl"),
        (
            "a.txt",
            b'{"text": "One."}\n{"text": "Two."}',
            r"JSON lines, not prose: rename it to a\.js",
        ),
        ("a.pkl", pickle.dumps("x"), r"no text that can be read here: give UTF-8 text"),
        ("a.html", b"<p>One.</p>", r"no text that can be read here"),
        ("a.docx", b"PK\3\4", r"no text that can be read here"),
        ("a.txt.gz", b"no gzip", r"cannot be read \(BadGzipFile"),
        ("a.jsonl", b'{"text": "a"}\n{"te', r"a\.jsonl cannot be read as jsonl"),
        (
            "a.csv",
            "text,n\ncafé,1".encode("latin-1"),
            r"cannot be read as csv \(UnicodeDecodeError",
        ),
        ("a.parquet", b"PAR1", r"cannot be read as parquet"),
        ("a.jsonl.gz", b"no gzip", r"cannot be read as jsonl"),
    ],
)
def test_what_is_no_text_is_refused_in_one_sentence(tmp_path, capfd, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert capfd.readouterr().err == ""  # datasets would print what the sentence says already


def test_a_column_of_a_plain_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("One.")
    with pytest.raises(
        ValueError, match=r"plain text and has no column 'text': name the file alone"
    ):
        load(tmp_path / "a.txt", "text")


# ---------------------------------------------------------------- data sets of the hub


@pytest.fixture
def hub_data_set(tmp_path, monkeypatch) -> Path:
    """A folder with the layout of a data set on the hub, below the current one: ORG/NAME."""
    folder = tmp_path / "elsewhere" / "name"
    parquet(folder / "data" / "train-00000-of-00002.parquet", ROWS[:2])
    parquet(folder / "data" / "train-00001-of-00002.parquet", ROWS[2:])
    parquet(folder / "data" / "test-00000-of-00001.parquet", [{**ROWS[0], "text": "Test."}])
    stream = reading._stream
    monkeypatch.setattr(reading, "_stream", lambda source: stream({**source, "path": str(folder)}))
    return folder


def test_a_data_set_of_the_hub_is_streamed_by_column(hub_data_set, monkeypatch):
    assert [d.text for d in load("org/name")] == [row["text"] for row in ROWS]
    assert [d.text for d in load("org/name:title")] == ["Title 0", "Title 1", "Title 2"]
    monkeypatch.setattr(reading, "STREAMED_CHARS", 30)
    assert len(load("org/name:text")) == 2
    with pytest.raises(ValueError, match="org/name has no column 'body': it has id, text, title"):
        load("org/name:body")


def test_a_configuration_stands_behind_a_second_slash(monkeypatch):
    asked = []
    monkeypatch.setattr(reading, "_stream", lambda source: asked.append(source) or iter(ROWS))
    assert len(load("org/name/config:text")) == len(load("org/name")) == 3
    assert asked == [{"path": "org/name", "name": "config"}, {"path": "org/name"}]


def test_a_data_set_that_the_hub_does_not_give_is_told_in_a_sentence():
    """Offline, as in every test."""
    with pytest.raises(
        RuntimeError, match=r"org/no-such-name is no file or folder here, and could"
    ):
        load("org/no-such-name:text")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.jsonl:body", ("a.jsonl", "body")),
        ("org/name/config:text", ("org/name/config", "text")),
        (r"C:\texts\a.txt", (r"C:\texts\a.txt", "")),
        ("a.txt", ("a.txt", "")),
    ],
)
def test_a_column_stands_behind_the_last_colon(name, parts):
    assert reading.parted(name) == parts
