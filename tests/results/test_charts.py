"""Charts draw the given values; files contain their sources; alt text has the numbers."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from depthprune_core.records import Curve, Profile, Recipe, Score, SetCosts, Timing
from depthprune_study.results import charts, style
from depthprune_study.results.charts import parts, wording
from depthprune_study.results.statistics import Interval

RISES = (7.6, 0.9, 0.30, 0.21, 0.15, 0.02, 0.14, 0.12, 0.17, 0.20, 0.34, 3.1)
TITLE = "Healing wins back three quarters of what the cut cost"
ABOUT = {"title": TITLE, "model": "small", "dropped": (3, 4)}
INFINITE = Interval(math.inf, math.inf, math.inf, 40)
UNKNOWN = Interval(math.nan, math.nan, math.nan, 40)


def about(point: float, half: float = 0.02) -> Interval:
    return Interval(point, point - half, point + half, 40)


def make_profile(rises=RISES) -> Profile:
    rng = np.random.default_rng(0)
    names = tuple(f"article {n}" for n in range(8))
    teacher = Score(names, (300.0,) * 8, (100,) * 8, (400,) * 8)
    rows = tuple(tuple(float(100 * r * (1 + 0.1 * rng.normal())) for _ in names) for r in rises)
    angles = {"1": tuple(0.1 + abs(r) / 10 for r in rises)}
    by_layer = {"taylor": tuple(rises), "magnitude": tuple(rng.uniform(9e4, 1e5, len(rises)))}
    return Profile(len(rises), teacher, {"drop_nll_nats": rows}, by_layer, angles)


def make_costs(n: int = 12) -> SetCosts:
    single = {str(i): RISES[i] for i in range(n)}
    pair = {f"{i},{j}": RISES[i] + RISES[j] + 0.1 for i, j in itertools.combinations(range(n), 2)}
    return SetCosts(n, single | pair | {"5,7": 0.08})


def make_curve(first: float, last: float, diverged: str = "") -> Curve:
    tokens = (0, 100_000, 200_000, 300_000)
    ratios = (first, (first + last) / 2, (first + 3 * last) / 4, last)
    nll = tuple(3.0 + math.log(ratio) for ratio in ratios)
    return Curve(Recipe(300_000, 1e-4), "abc", tokens, {"kl": nll}, tokens, nll, diverged)


def make_timing(ratio: float) -> Timing:
    rng = np.random.default_rng(1)
    slow, fast = rng.normal(50, 0.5, (2, 9)), rng.normal(50 / ratio, 0.5, (2, 9))
    times = (tuple(slow[0]), tuple(fast[0]), tuple(slow[1]), tuple(fast[1]))
    return Timing("cpu", "float32", 1, 128, 32, 2, *times, 1.2, 1.13, 1_000, 833)


STAGES = {"cut": about(1.267), "refitted": about(1.131), "healed": about(1.061)}
CONTROL = {"ce": about(0.921), "whole, same text": about(0.811)}
DEPTHS = {
    "cut": {0.05: about(1.27), 0.1: about(9.0)},
    "healed": {0.05: about(1.06), 0.1: about(1.2)},
}
BEFORE = {f"{n},{n + 3}": 0.2 + 0.03 * n for n in range(10)}
AFTER = {name: 0.1 + 0.01 * ((n * 7) % 10) for n, name in enumerate(BEFORE)}


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    tried = {"lr": {"1e-4": about(1.0, 0.0), "4e-4": about(1.2)}, "warmup": {"0.1": about(1.0)}}
    three = {k: about(1 + 0.1 * k) for k in (1, 2, 3)}
    answers = {s: about(0.9 - 0.1 * n) for n, s in enumerate(("whole", "healed", "ce", "cut"))}
    sized = {"healed": (5_000_000, about(1.1)), "Q8_0": (1_400_000, about(1.0))}
    levels = {"lr": "1e-4", "warmup": "0.1"}
    budget = {"articles": {0: about(1.3), 4_096: about(1.1), 250_000: about(1.05)}}
    return {
        "profile": charts.profile(make_profile(), (5, 7), title=TITLE),
        "criteria": charts.criteria(make_profile(), title=TITLE),
        "pairs": charts.pairs(make_costs(), title=TITLE),
        "path": charts.path(STAGES, CONTROL, **ABOUT),
        "ratios": charts.ratios({**STAGES, **CONTROL, "whole": about(1.0)}, title=TITLE),
        "curves": charts.curves({"healed": make_curve(1.13, 1.06)}, 3.0, title=TITLE),
        "speed": charts.speed({f"{k} fewer": make_timing(1 + k / 8) for k in (1, 3)}, title=TITLE),
        "seeds": charts.seeds({"SmolLM2": {"seed 0": about(1.06)}}, title=TITLE),
        "rivals": charts.rivals({"refitted": three, "replaceme": three}, title=TITLE),
        "choice": charts.choice(BEFORE, AFTER, tail=5, title=TITLE),
        "depth": charts.depth(DEPTHS, {0.08: 1.057}, title=TITLE),
        "budget": charts.budget(budget, title=TITLE),
        "sweep": charts.sweep(tried, levels, title=TITLE),
        "probes": charts.probes({"copying": answers, "agreement": answers}, title=TITLE),
        "bytes_against_ppl": charts.bytes_against_ppl(sized, title=TITLE),
    }


def texts(figure: Figure) -> list[str]:
    found = [text.get_text() for text in figure.findobj(Text) if text.get_visible()]
    return [text for text in found if text]


def points(figure: Figure, *, upright: bool = False) -> list[float]:
    """The values of every single marker, in the order drawn."""
    singles = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    return [float((line.get_ydata() if upright else line.get_xdata())[0]) for line in singles]


def rows(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


# ---------------------------------------------------------------- what all figures promise


def test_every_chart_has_its_finding_as_title_and_no_legend(drawn):
    for name, figure in drawn.items():
        assert figure._suptitle.get_text() == TITLE, name
        assert all(ax.get_legend() is None for ax in figure.axes), name


LONGEST = "Rounding to Q8_0 and Q4_0 costs less, in fewer bytes, than fewer layers"


@pytest.mark.parametrize("title", [f"{TITLE}; and then it goes on about models", LONGEST])
def test_a_long_title_stays_inside(title):
    figure = charts.ratios(STAGES, title=title)
    figure.draw_without_rendering()
    assert figure._suptitle.get_window_extent().x1 <= figure.bbox.x1


def test_no_figure_shows_a_name_from_the_code(drawn):
    for name, figure in drawn.items():
        said = " ".join([*texts(figure), figure.get_label()])
        for word in ("ce", "arm", "nll", "ppl", "lr"):
            assert word not in said.replace(":", " ").replace(",", " ").lower().split(), name
        assert "_" not in said.replace("Q8_0", ""), name


def test_ideas_have_a_marker_each_and_colours_dark_enough_for_words():
    """A contrast of 4.5 to 1 on white, as WCAG asks."""
    assert len({marker for _, marker in style.IDEAS.values()}) == len(style.IDEAS)
    for colour, _ in style.IDEAS.values():
        rgb = np.array(to_rgb(colour))
        linear = np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        assert 1.05 / (linear @ (0.2126, 0.7152, 0.0722) + 0.05) >= 4.5, colour


def test_matplotlibs_own_settings_stay_as_they_were(drawn):
    assert matplotlib.rcParams["svg.fonttype"] == matplotlib.rcParamsDefault["svg.fonttype"]


def test_an_svg_is_the_same_each_time_keeps_its_text_and_has_alt_text(drawn):
    text = charts.svg(drawn["path"])
    assert text == charts.svg(charts.path(STAGES, CONTROL, **ABOUT)) == charts.svg(drawn["path"])
    root = ElementTree.fromstring(text)
    assert root.get("aria-label") == drawn["path"].get_label() and root.get("role") == "img"
    words = {node.text for node in root.iter() if node.tag.endswith("}text")}
    assert {"1.267", "1.061"} <= words and "<dc:date>" not in text


# ---------------------------------------------------------------- what each one draws


def test_the_path_draws_every_stage_and_the_control_with_its_number(drawn):
    figure = drawn["path"]
    assert points(figure, upright=True) == [1.0, 1.267, 1.131, 1.061, 0.921, 0.811]
    assert {"1.267", "1.131", "1.061", "0.921", "0.811"} <= set(texts(figure))
    assert "student ÷ whole model = 1.136" in " ".join(texts(figure))
    alt = figure.get_label()
    assert alt.startswith(TITLE) and "healed 1.061 [1.041, 1.081]" in alt
    assert "cut, trained on the text 0.921" in alt


@pytest.mark.parametrize(
    ("cut", "said"), [(about(43.2), "↑ 43.2"), (INFINITE, "↑ infinite"), (UNKNOWN, "not a number")]
)
def test_a_cut_far_off_the_scale_is_written_at_the_edge_of_the_path(cut, said):
    for control in (CONTROL, {}):
        figure = charts.path({**STAGES, "cut": cut}, control, **ABOUT)
        assert figure.axes[0].get_ylim()[1] < 2 and said in texts(figure)


def test_rows_are_sorted_and_show_point_interval_and_number(drawn):
    figure = charts.ratios({**STAGES, "whole": about(1.0)}, title=TITLE)
    assert rows(figure) == ["healed", "refitted", "cut"]
    assert points(figure) == [1.061, 1.131, 1.267]
    assert {"1.061 [1.041, 1.081]", "whole model"} <= set(texts(figure))
    spans = [line.get_segments()[0][:, 0] for line in figure.axes[0].collections]
    assert np.allclose(spans[0], (1.041, 1.081))
    assert "Error bars: 95 % intervals over 40 articles." in texts(figure)


def test_more_than_seven_rows_stand_in_a_line_and_in_the_alt_text():
    figure = charts.ratios({f"rule_{n}": about(1.1 + n / 10) for n in range(9)}, title=TITLE)
    assert len(rows(figure)) == 7
    assert "Not drawn: rule 7 1.800; rule 8 1.900." in " ".join(texts(figure))
    assert "rule 8 1.900 [1.880, 1.920]" in figure.get_label()


def test_rows_zoom_on_the_contenders_and_write_the_rest_as_numbers():
    far = {**STAGES, "most_sensitive": about(4_210.0, 900.0), "last_k": INFINITE}
    figure = charts.ratios({**far, "random": UNKNOWN}, title=TITLE)
    edge = figure.axes[0].get_xlim()[1]
    assert edge < 1.5 and [p for p in points(figure) if p > 1.3] == [edge, edge]
    assert {"4,210 [3,310, 5,110]", "infinite", "not a number"} <= set(texts(figure))
    alone = Interval(1.2, -math.inf, math.inf, 1, "one document")
    assert "1.200 (one document)" in texts(charts.ratios({"healed": alone}, title=TITLE))
    low, high = parts.zoom([INFINITE], 1.0)  # nothing to zoom on
    assert low < 1 < high < 2


def test_every_seed_is_a_point_with_its_number():
    by_seed = {f"seed {n}": about(1.06 + 0.001 * n) for n in range(5)}
    figure = charts.seeds({"SmolLM2": by_seed}, title=TITLE)
    assert points(figure) == pytest.approx([1.06, 1.061, 1.062, 1.063, 1.064])
    assert rows(figure)[:2] == ["SmolLM2: seed 0", "seed 1"]
    assert "SmolLM2, seed 3 1.063" in figure.get_label()


def test_speed_shows_what_layers_and_bytes_allow_and_marks_what_exceeds_it(drawn):
    figure = drawn["speed"]
    assert rows(figure)[:2] == ["1 layer fewer: decode", "layer count alone"]
    assert {1.2, 1.13} <= set(points(figure))
    assert sum(text.endswith("(suspect)") for text in texts(figure)) == 2, "decode and prefill"
    assert "3 layers fewer, layer count alone 1.200" in figure.get_label()
    assert "over 9 rounds. cpu, float32, batch 1, context 128." in " ".join(texts(figure))


def test_the_sweep_marks_the_level_kept_and_begins_with_what_matters_most(drawn):
    assert rows(drawn["sweep"]) == ["learning rate: 1e-4 (kept)", "4e-4", "0.1 (kept)"]
    assert points(drawn["sweep"]) == [1.0, 1.2, 1.0]
    assert "learning rate, 4e-4 1.200" in drawn["sweep"].get_label()


def test_probes_and_bytes_are_rows(drawn):
    assert rows(drawn["probes"]) == ["copying", "agreement"]
    by_stage, chance = points(drawn["probes"])[:6], points(drawn["probes"])[6:]
    assert by_stage == pytest.approx([0.9, 0.9, 0.6, 0.6, 0.8, 0.8]) and chance == [0.25, 0.5]
    assert {"0.90", "0.60", "0.80"} <= set(texts(drawn["probes"]))
    assert rows(drawn["bytes_against_ppl"]) == ["8-bit weights (Q8_0): 1 MB", "healed: 5 MB"]


def test_a_curve_is_named_at_its_end_and_a_diverged_one_says_so():
    empty = Curve(Recipe(2_048, 1e-4), "abc", (), {}, (), ())
    named = {"healed": make_curve(1.13, 1.06), "ce": make_curve(1.13, 9.0, "nan"), "cut": empty}
    figure = charts.curves(named, 3.0, title=TITLE)
    healed = figure.axes[0].lines[0]
    assert np.allclose(healed.get_ydata()[[0, -1]], (1.13, 1.06))
    assert list(healed.get_xdata()) == [0, 100_000, 200_000, 300_000]
    end = "↑ cut, trained on the text, diverged, 9.000"
    assert {"healed, 1.060", end, "whole model"} <= set(texts(figure))
    assert "healed at 0 1.130; healed at 100,000 1.095" in figure.get_label().replace(
        "1e+05", "100,000"
    )


def test_depth_is_scaled_for_the_trained_students_and_has_the_sources_points(drawn):
    (ax,) = drawn["depth"].axes
    assert ax.get_ylim()[1] < 2
    stars = next(line for line in ax.lines if line.get_marker() == "*")
    assert (list(stars.get_xdata()), list(stars.get_ydata())) == ([0.08], [1.057])
    assert {"★ the source", "↑ cut, 9.000", "healed, 1.200"} <= set(texts(drawn["depth"]))
    assert "healed at 0.05 1.060 [1.040, 1.080]" in drawn["depth"].get_label()


def test_rivals_share_a_colour_but_no_marker_and_one_depth_becomes_rows():
    methods = ("prune_and_comp", "linear_patch", "replaceme")
    lines = {
        name: {1: about(1.1 + 0.1 * n), 2: about(1.3 + 0.1 * n)} for n, name in enumerate(methods)
    }
    figure = charts.rivals(lines, title=TITLE)
    looks = parts.looks(methods)
    assert len({colour for colour, _ in looks.values()}) == 1
    assert len({marker for _, marker in looks.values()}) == 3
    assert {"Prune&Comp, 1.300", "LinearPatch, 1.400", "ReplaceMe, 1.500"} <= set(texts(figure))
    one = charts.rivals({name: {2: line[2]} for name, line in lines.items()}, title=TITLE)
    assert rows(one)[0] == "Prune&Comp"


def test_the_budget_has_a_logarithmic_axis_on_which_no_training_has_its_place(drawn):
    (ax,) = drawn["budget"].axes
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["refit only", "4 k", "250 k"] and ax.get_xscale() == "symlog"
    assert "articles at 4,096 1.100" in drawn["budget"].get_label()
    assert any(text.startswith("Bands: 95 %") for text in texts(drawn["budget"]))


def test_the_profile_numbers_dropped_layers_and_those_off_the_scale(drawn):
    figure = drawn["profile"]
    said = texts(figure)
    assert {"5", "7"} <= set(said) and sum(
        text.startswith(("0: 7.", "11: 3.")) for text in said
    ) == 2
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "X"]
    assert [int(line.get_xdata()[0]) for line in crosses] == [5, 7]
    assert "layer 5 (dropped) 0.0" in figure.get_label() and "layer 11 3." in figure.get_label()
    below = charts.profile(make_profile((-0.02, 0.01, -0.3, 0.03, 0.02)), (2,), title=TITLE)
    assert any(text.startswith("2: -0.3") for text in texts(below))


def test_criteria_rank_the_layers_beside_the_loss(drawn):
    figure = drawn["criteria"]
    cells = figure.axes[0].collections[0].get_array()
    assert cells.shape == (4, 12) and cells[0, 0] == 12 and cells[0, 5] == 1
    assert rows(figure)[0] == "loss without it: 1.00"
    assert "angular distance and the loss 0.99" in figure.get_label()


def test_pairs_are_drawn_cell_by_cell_and_the_cheapest_is_named(drawn):
    figure = drawn["pairs"]
    cells = figure.axes[0].collections[0].get_array()
    assert cells[7, 5] == pytest.approx(0.08) and cells[11, 0] == pytest.approx(10.8)
    assert np.ma.getmaskarray(cells)[5, 7]  # above the diagonal there is nothing
    assert "layers 5 and 7 0.08" in figure.get_label()
    assert "cheapest:\n5 and 7" in texts(figure)


def test_the_choice_plots_ranks_beside_the_diagonal_with_both_correlations(drawn):
    dots = [line for line in drawn["choice"].axes[0].lines if line.get_marker() == "o"]
    assert [int(line.get_xdata()[0]) for line in dots] == list(range(1, 11))
    assert [int(line.get_ydata()[0]) for line in dots][:3] == [1, 8, 5]
    assert sum(line.get_fillstyle() == "none" for line in dots) == 5
    assert "of the filled pairs" in " ".join(texts(drawn["choice"])).replace("\n", " ")
    assert "layers 1 and 4 from rank 2 to 8" in drawn["choice"].get_label()


# ---------------------------------------------------------------- parts


def test_labels_are_moved_apart_in_order_and_stay_inside():
    moved = parts.apart([0.5, 0.51, 0.1, 0.99], 0.1)
    assert np.all(np.diff(np.sort(moved)) > 0.0999) and moved.min() >= 0 and moved.max() <= 1
    assert list(np.argsort(moved)) == [2, 0, 1, 3] and moved[2] == pytest.approx(0.1)


def test_a_name_has_the_colour_of_its_idea():
    assert wording.idea("replaceme, 2 fewer") == "rival"
    assert wording.idea("whole, same text") == wording.idea(wording.words("whole, same text"))
    assert wording.idea("whole, same text") == "control"
    assert wording.idea("at once, healed") == "healed" and wording.idea("ce") == "text"
