"""The records behind a figure are read off the cells that drew it."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from depthprune_study import drawn, executed_notebooks, places
from depthprune_study.settings import StudyError

CI = places.ROOT / "reports" / "ci"
CELLS = [
    'profile = bench.once("profile", lambda: measure(teacher), on=[teacher])',
    'bench.show("profile", figures.bars(profile))',
    "def choose(k, score=other):\n    return bench.once(f'chosen-{k}', lambda: k)",
    'recipe = bench.read("01_first", "recipe").values\ncut = choose(recipe["k"])\nbench.show("cut", figures.cut(cut))',
    'timings = {k: bench.once(f"timing-{k}", lambda: time(k), on=[k]) for k in counts}\nbench.show("speed", figures.speed(timings))',
    'other = bench.once("other", lambda: 1)\nscores = bench.once("of-before", lambda: other)\nscores = bench.validation_scores(models)',
    'bench.save("scores", scores | {"late": other})\nratios = {name: ratio(score) for name, score in scores.items()}',
    'for k in counts:\n    if k:\n        bench.show(f"rules-{k}", figures.arms(ratios[k], title=f"{k} fewer"))',
    'pieces = bench.validation_scores({"teacher": teacher})\npieces |= bench.test_scores(models)\nbench.show("pieces", draw(pieces))',
    'table = {}\ntable["a"] = bench.read("01_first", name_of(k)).a\nbench.show("filled", draw(table))\ntable = bench.once("too-late", f)',
    'spread = deviation(profile)\nbench.save("facts", Facts({"spread": spread, "n": len(other)}))\nbench.show("spread", draw(spread))',
    'bench.show("constant", draw([1, 2]))\nbench.show("other", draw(other))',
]


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "02_second.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS]), path)
    return path


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        ("profile", ["02_second/profile"]),
        ("cut", ["02_second/chosen-3", "01_first/recipe"]),
        ("speed", ["02_second/timing-2", "02_second/timing-3"]),  # not that of a whole shape
        ("rules-2", ["02_second/scores"]),  # neither what `scores` had been, nor what is saved beside them
        ("rules-3", ["02_second/scores"]),
        ("pieces", ["02_second/test/any", "02_second/validation/teacher"]),
        ("filled", ["01_first/any", "01_first/recipe"]),  # a name that cells work out may be any
        ("spread", ["02_second/facts"]),
        ("constant", []),
        ("other", ["02_second/scores"]),  # which holds it; not `facts`, which only counts it
        ("rules-4", []),
        ("nosuch", []),
    ],
)
def test_a_figure_leads_to_what_it_was_drawn_from(notebook: Path, figure: str, expected: list[str]) -> None:
    there = [
        *("profile", "chosen-3", "timing-2", "timing-3", "timing-shape", "scores", "of-before", "other", "facts", "too-late"),
        *("validation/teacher", "validation/other", "test/any"),
    ]
    records = [("01_first", "recipe"), ("01_first", "any"), *[("02_second", name) for name in there]]
    asked = drawn.records_of(notebook, figure, {"counts": [2, 3]})
    found = {
        f"{folder}/{name}"
        for folder, name in records
        for asked_of, pattern in asked
        if asked_of == folder and re.fullmatch(pattern, name)
    }
    assert found == set(expected)


@pytest.mark.parametrize("figure", sorted(path.stem for path in (CI / "figures").glob("0*.png")))
def test_every_figure_of_the_notebooks_is_followed_to_records_by_name(figure: str) -> None:
    name, _, figure = figure.partition("-")
    path = CI / "notebooks" / f"{name}.ipynb"
    parameters = executed_notebooks.injected(executed_notebooks.cells_of(path) or [])
    assert parameters is not None
    asked = drawn.records_of(path, figure, parameters)
    assert asked and all(pattern != "[^/]*" for _, pattern in asked)


def test_what_is_no_notebook_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "03_bad.ipynb").write_text("{")
    with pytest.raises(StudyError, match="is damaged, or is no notebook"):
        drawn.records_of(tmp_path / "03_bad.ipynb", "profile", {})
