"""What is drawn is what was given; files say their sources; alt text holds the numbers."""

from __future__ import annotations

import inspect
import io
import itertools
import math
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from depthprune_core.records import Curve, Profile, Recipe, Score, SetCosts, Timing
from depthprune_study.results import charts, style
from depthprune_study.results.charts import parts, wording
from depthprune_study.results.statistics import Interval

RISES = (7.6, 0.9, 0.30, 0.21, 0.15, 0.02, 0.14, 0.12, 0.17, 0.20, 0.34, 3.1)
TITLE = "Healing wins back three quarters of what the cut cost"
LONG = (
    f"{TITLE}; and then the title goes on about forty articles, two models and what was not found"
)
INFINITE = Interval(math.inf, math.inf, math.inf, 40, 30.0)
UNKNOWN = Interval(math.nan, math.nan, math.nan, 40, 30.0)


def about(point: float, half: float = 0.02) -> Interval:
    return Interval(point, point - half, point + half, 40, 30.0)


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


def every_chart(title: str = TITLE) -> dict[str, Figure]:
    tried = {"lr": {"1e-4": about(1.0, 0.0), "4e-4": about(1.2)}, "warmup": {"0.1": about(1.0)}}
    three = {k: about(1 + 0.1 * k) for k in (1, 2, 3)}
    answers = {s: about(0.9 - 0.1 * n) for n, s in enumerate(("whole", "healed", "ce", "cut"))}
    made = {
        "profile": charts.profile(make_profile(), (5, 7), title=title),
        "criteria": charts.criteria(make_profile(), title=title),
        "stability": charts.stability({1: 0.9, 4: 0.97, 8: 0.99}, title=title),
        "pairs": charts.pairs(make_costs(), (5, 7), title=title),
        "path": charts.path(STAGES, CONTROL, title=title),
        "ratios": charts.ratios({**STAGES, **CONTROL}, title=title),
        "curves": charts.curves({"healed": make_curve(1.13, 1.06)}, 3.0, title=title),
        "speed": charts.speed({"2 fewer": make_timing(1.15)}, title=title),
        "seeds": charts.seeds({"SmolLM2, healed": {"0": about(1.06)}}, title=title),
        "rivals": charts.rivals({"refitted": three, "replaceme": three}, title=title),
        "choice": charts.choice(BEFORE, AFTER, tail=5, title=title),
        "depth": charts.depth(DEPTHS, {0.08: 1.057}, title=title),
        "budget": charts.budget({"articles": {1_000: about(1.1)}}, title=title),
        "sweep": charts.sweep(tried, {"lr": "1e-4", "warmup": "0.1"}, title=title),
        "probes": charts.probes({"copying": answers, "agreement": answers}, title=title),
    }
    made["bytes_against_ppl"] = charts.bytes_against_ppl(
        {"healed": (5_000_000, about(1.1)), "Q8_0": (1_400_000, about(1.0))}, title=title
    )
    return made


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    return every_chart()


def texts(figure: Figure) -> list[str]:
    found = [text.get_text() for text in figure.findobj(Text) if text.get_visible()]
    return [text for text in found if text]


def all_text(figure: Figure) -> str:
    return "\n".join(texts(figure))


def points(ax, *, upright: bool = False) -> list[float]:
    """The values of every single marker, in the order drawn."""
    singles = [line for line in ax.lines if len(line.get_xdata()) == 1]
    singles = [line for line in singles if line.get_marker() not in ("None", "")]
    return [float((line.get_ydata() if upright else line.get_xdata())[0]) for line in singles]


# ---------------------------------------------------------------- what all figures promise


def test_every_function_of_the_contract_is_there_and_takes_a_title(drawn):
    functions = {name for name in charts.__all__ if name not in ("png", "svg", "sources_in")}
    assert functions == set(drawn)
    for name in functions:
        title = inspect.signature(getattr(charts, name)).parameters["title"]
        assert title.kind is inspect.Parameter.KEYWORD_ONLY


def test_the_title_is_the_finding_bold_and_at_the_left(drawn):
    for figure in drawn.values():
        (title,) = [t for t in figure.texts if t.get_text().replace("\n", " ") == TITLE]
        assert title.get_fontweight() == "bold" and title.get_horizontalalignment() == "left"


def test_a_long_title_is_wrapped_to_the_width():
    lines = style.wrapped(LONG, style.WIDTH - 0.2)
    assert " ".join(lines) == LONG and len(lines) > 1
    assert all(len(line.split()) > 1 for line in lines)
    figure = charts.ratios(STAGES, title=LONG)
    figure.draw_without_rendering()
    title = next(t for t in figure.texts if t.get_text().startswith("Healing"))
    assert title.get_window_extent().x1 <= figure.bbox.x1


def test_no_text_is_smaller_than_nine_or_larger_than_eleven_points(drawn):
    for name, figure in drawn.items():
        sizes = {t.get_fontsize() for t in figure.findobj(Text) if t.get_text().strip()}
        assert min(sizes) >= 9 and max(sizes) <= 11, name


def test_no_figure_speaks_the_codes_words(drawn):
    for name, figure in drawn.items():
        said = all_text(figure) + figure.get_label()
        for word in ("ce", "arm", "nll", "ppl"):
            assert word not in said.replace(":", " ").replace(",", " ").lower().split(), name
        assert "_" not in said.replace("Q8_0", ""), name


def test_no_figure_has_a_legend(drawn):
    for figure in drawn.values():
        assert not figure.legends
        assert all(ax.get_legend() is None for ax in figure.axes)


def test_ideas_are_told_apart_in_grey_by_lightness_or_shape():
    def lightness(colour: str) -> float:
        return float(np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)))

    looks = {idea: look for idea, look in style.IDEAS.items() if idea != "other"}
    assert len({marker for _, marker in looks.values()}) == len(looks)
    for (_, first), (_, second) in itertools.combinations(looks.items(), 2):
        assert first[0] != second[0] and first[1] != second[1]
    path = [lightness(looks[stage][0]) for stage in ("whole", "healed", "cut", "refitted")]
    assert all(after - before > 0.1 for before, after in itertools.pairwise(path))


def test_words_in_a_colour_are_dark_enough_to_read():
    assert style.readable("#0A4C94") == to_hex("#0a4c94")
    light = style.readable("#E8A320")
    assert light != "#e8a320" and sum(to_rgb(light)) < sum(to_rgb("#E8A320"))


def test_matplotlibs_own_settings_stay_as_they_were(drawn):
    assert matplotlib.rcParams["svg.fonttype"] == matplotlib.rcParamsDefault["svg.fonttype"]
    assert matplotlib.rcParams["axes.spines.top"] is True


# ---------------------------------------------------------------- files


def test_a_png_is_sharp_small_and_says_its_sources(drawn):
    sources = {"records/test.json": "0123abcd", "name": "Universität"}
    for name in ("path", "criteria"):
        data = charts.png(drawn[name], sources=sources)
        image = Image.open(io.BytesIO(data))
        assert 1_150 <= image.width <= 1_250 and len(data) < 80_000
        assert charts.sources_in(data) == sources
    assert charts.png(drawn["criteria"], sources=sources) == data


def test_an_svg_is_the_same_each_time_keeps_its_text_and_has_alt_text(drawn):
    text = charts.svg(drawn["path"])
    again = charts.svg(charts.path(STAGES, CONTROL, title=TITLE))
    assert text == again == charts.svg(drawn["path"])
    root = ElementTree.fromstring(text)
    assert root.get("aria-label") == drawn["path"].get_label() and root.get("role") == "img"
    words = {node.text for node in root.iter() if node.tag.endswith("}text")}
    assert {"1.267", "1.061"} <= words
    assert "<dc:date>" not in text and len(text) < 60_000


def test_the_heat_map_of_many_pairs_stays_a_small_svg(drawn):
    assert len(charts.svg(drawn["pairs"])) < 100_000


# ---------------------------------------------------------------- the answer


def test_the_path_draws_every_stage_and_the_control_with_numbers_and_intervals():
    figure = charts.path(STAGES, CONTROL, title=TITLE)
    (ax,) = figure.axes
    assert points(ax, upright=True) == [1.0, 1.267, 1.131, 1.061, 0.921, 0.811]
    said = texts(figure)
    assert {"1.267", "1.247–1.287", "1.061", "0.811", "0.791–0.831"} <= set(said)
    assert "student ÷ whole model = 1.136" in all_text(figure)
    labels = [label.get_text().split("\n")[0] for label in ax.get_xticklabels()]
    assert labels == ["whole model", "cut", "refitted", "healed", "student", "whole model"]
    alt = figure.get_label()
    assert alt.startswith(TITLE) and "healed 1.061 (1.041–1.081)" in alt
    assert "cut, trained on the text 0.921" in alt


def test_a_cut_far_off_the_scale_is_written_at_the_edge_of_the_path():
    figure = charts.path({**STAGES, "cut": about(43.2)}, CONTROL, title=TITLE)
    assert figure.axes[0].get_ylim()[1] < 2
    assert "↑ 43.2" in texts(figure)


def test_a_path_without_control_or_with_what_is_not_finite_can_be_drawn():
    figure = charts.path({"cut": INFINITE, "healed": about(1.1)}, {}, title=TITLE)
    assert "↑ infinite" in texts(figure)
    figure = charts.path({"cut": UNKNOWN, "healed": about(1.1)}, {}, title=TITLE)
    assert "not a number" in texts(figure)


def test_a_curve_is_named_at_its_end_and_a_diverged_one_says_so():
    named = {"healed": make_curve(1.13, 1.06), "adapters": make_curve(1.13, 9.0, "loss is nan")}
    figure = charts.curves(named, 3.0, title=TITLE)
    healed = figure.axes[0].lines[0]
    assert np.allclose(healed.get_ydata()[[0, -1]], (1.13, 1.06))
    assert list(healed.get_xdata()) == [0, 100, 200, 300]  # thousand tokens
    assert {"healed, 1.060", "↑ adapters, healed, 9.000, diverged"} <= set(texts(figure))
    assert "whole model" in texts(figure)
    assert "healed, from 1.130 to 1.060" in figure.get_label()


def test_a_student_without_validation_is_left_out_of_the_curves():
    empty = Curve(Recipe(2_048, 1e-4), "abc", (), {}, (), ())
    figure = charts.curves({"healed": empty}, 3.0, title=TITLE)
    assert "healed" not in all_text(figure).replace(TITLE, "")


# ---------------------------------------------------------------- rows


def test_rows_are_sorted_and_show_point_interval_and_number():
    figure = charts.ratios({**STAGES, "whole": about(1.0)}, title=TITLE)
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["healed", "refitted", "cut"]
    assert points(ax) == [1.061, 1.131, 1.267]
    assert "1.061 (1.041–1.081)" in texts(figure)
    lines = [line for line in ax.lines if len(line.get_xdata()) == 2]
    assert any(np.allclose(line.get_xdata(), (1.041, 1.081)) for line in lines)
    assert any(list(line.get_xdata()) == [1, 1] for line in lines)  # the baseline
    assert "Lines: 95 % intervals over 40 articles." in texts(figure)


def test_more_than_seven_rows_are_summed_up_in_a_line_and_stay_in_the_alt_text():
    rules = {f"rule_{n}-2": about(1.1 + 0.1 * n) for n in range(9)}
    figure = charts.ratios(rules, title=TITLE)
    assert len(figure.axes[0].get_yticklabels()) == 7
    assert "2 more, not drawn: 1.800 (rule 7, 2 fewer) to 1.900" in all_text(figure).replace(
        "\n", " "
    )
    assert "rule 8, 2 fewer 1.900" in figure.get_label()
    assert "2 layers fewer" in figure.axes[0].get_xlabel()  # once, not in every row
    assert figure.axes[0].get_yticklabels()[0].get_text() == "rule 0"


def test_rows_zoom_on_the_contenders_and_write_the_rest_at_the_edge():
    far = {**STAGES, "most_sensitive-2": about(4_210.0, 900.0), "last_k-2": INFINITE}
    figure = charts.ratios({**far, "random-2": UNKNOWN}, title=TITLE)
    (ax,) = figure.axes
    assert ax.get_xlim()[1] < 1.5
    edge = ax.get_xlim()[1]
    assert [p for p in points(ax) if p > 1.3] == [edge, edge]
    assert {"4,210 (3,310–5,110)", "infinite", "not a number"} <= set(texts(figure))


def test_a_single_row_one_below_the_baseline_and_one_without_interval_are_drawn():
    figure = charts.ratios({"healed": about(0.9)}, title=TITLE)
    assert figure.axes[0].get_xlim()[0] < 0.9
    alone = Interval(1.2, -math.inf, math.inf, 1, 1.0)
    assert "1.200 (no interval)" in texts(charts.ratios({"healed": alone}, title=TITLE))


def test_every_seed_is_a_point():
    seeds = {"SmolLM2, healed": {str(n): about(1.06 + 0.001 * n) for n in range(5)}}
    figure = charts.seeds(seeds, title=TITLE)
    assert points(figure.axes[0]) == pytest.approx([1.06, 1.061, 1.062, 1.063, 1.064])
    assert "1.060 to 1.064, 5 seeds" in texts(figure)
    assert "SmolLM2, healed, seed 3 1.063" in figure.get_label()


def test_speed_shows_what_layers_and_bytes_allow_and_marks_what_exceeds_it():
    figure = charts.speed({"2 fewer": make_timing(1.15), "3 fewer": make_timing(1.4)}, title=TITLE)
    said = all_text(figure)
    assert "by layer count" in said and "by weight bytes" in said
    assert sum(text.endswith("suspect") for text in texts(figure)) == 1
    marks = {
        round(float(path.vertices[0][0]), 3)
        for c in figure.axes[0].collections
        for path in c.get_paths()
    }
    assert {1.2, 1.13} <= marks
    assert "2 layers fewer, by layer count 1.200" in figure.get_label()
    assert "cpu, float32, batch 1, context 128" in said


def test_the_sweep_has_one_row_a_factor_and_fills_the_level_kept():
    tried = {
        "lr": {"1e-4": about(1.0, 0.0), "4e-4": about(1.2)},
        "warmup": {"0.1": about(1.0, 0.0)},
    }
    figure = charts.sweep(tried, {"lr": "1e-4", "warmup": "0.1"}, title=TITLE)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["learning rate\nkept: 1e-4", "warm-up\nkept: 0.1"]
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert [float(line.get_xdata()[0]) for line in hollow] == [1.2]
    assert "4e-4" in texts(figure) and "learning rate 1e-4 (kept) 1.000" in figure.get_label()


def test_probes_name_the_students_once_and_show_every_share(drawn):
    said = texts(drawn["probes"])
    assert {"90 % whole model", "80 % healed", "70 % cut, trained on the text", "60 % cut"} <= set(
        said
    )
    assert {"90 %", "60 %"} <= set(said)
    assert points(drawn["probes"].axes[0]) == pytest.approx([0.9, 0.8, 0.7, 0.6] * 2)


# ---------------------------------------------------------------- layers


def test_the_profile_marks_dropped_layers_and_names_those_off_the_scale():
    figure = charts.profile(make_profile(), (5, 7), title=TITLE)
    said = all_text(figure)
    assert "layers 5, 7:\ndropped" in said
    for layer in (0, 11):
        assert f"layer {layer}\n↑" in said
    (ax,) = figure.axes
    red = [line for line in ax.lines if line.get_marker() == "X"]
    assert [int(line.get_xdata()[0]) for line in red] == [5, 7]
    assert "layer 5 (dropped) 0.0" in figure.get_label() and "layer 11 3." in figure.get_label()


def test_a_profile_with_negative_rises_and_one_of_eighty_layers_are_drawn():
    figure = charts.profile(make_profile((-0.02, 0.01, -0.3, 0.03, 0.02)), (2,), title=TITLE)
    assert "layer 2\n↓ -0.3" in all_text(figure)
    rises = tuple(0.1 + 0.001 * n for n in range(70)) + tuple(5.0 + n for n in range(10))
    figure = charts.profile(make_profile(rises), (3,), title=TITLE)
    assert "Off the scale too: layers 70, 71, 72." in all_text(figure)
    assert len(figure.axes[0].get_xticklabels()) <= 23


def test_criteria_have_their_agreement_and_a_panel_each(drawn):
    figure = drawn["criteria"]
    assert len(figure.axes) == 1 + 4
    assert "angular distance and first-order Taylor 1.000" in figure.get_label()
    assert sum(text == "1.00" for text in texts(figure)) >= 4  # the diagonal


def test_pairs_are_drawn_cell_by_cell_and_the_chosen_one_is_framed():
    figure = charts.pairs(make_costs(), (5, 7), title=TITLE)
    cells = figure.axes[0].collections[0].get_array()
    assert cells[7, 5] == pytest.approx(0.08) and cells[11, 0] == pytest.approx(10.8)
    assert np.ma.getmaskarray(cells)[5, 7]  # above the diagonal there is nothing
    frames = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert {frame.get_xy() for frame in frames} == {(5, 7)}
    assert "layers 5 and 7 0.080" in figure.get_label() and "chosen:\n5 and 7" in all_text(figure)


# ---------------------------------------------------------------- one thing against another


def test_depth_is_scaled_for_the_trained_students_and_has_the_sources_points(drawn):
    (ax,) = drawn["depth"].axes
    assert ax.get_ylim()[1] < 2
    stars = next(line for line in ax.lines if line.get_marker() == "*")
    assert (list(stars.get_xdata()), list(stars.get_ydata())) == ([8], [1.057])
    assert {"★ the source", "↑ cut, 9.000", "healed, 1.200"} <= set(texts(drawn["depth"]))
    assert "healed at 5 % 1.060 (1.040–1.080)" in drawn["depth"].get_label()


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
    rows = charts.rivals({name: {2: line[2]} for name, line in lines.items()}, title=TITLE)
    assert rows.axes[0].get_yticklabels()[0].get_text() == "Prune&Comp"


def test_the_budget_has_a_logarithmic_axis_with_the_budgets_tried():
    text = {100_000: about(1.1), 1_000_000: about(1.06)}
    figure = charts.budget({"articles": text, "own words": text}, title=TITLE)
    (ax,) = figure.axes
    assert ax.get_xscale() == "log"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["100 k", "1 M"]
    assert "own words at 1,000,000 tokens 1.060" in figure.get_label()


def test_the_choice_plots_ranks_beside_the_diagonal_with_both_correlations(drawn):
    (ax,) = drawn["choice"].axes
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [int(line.get_xdata()[0]) for line in dots] == list(range(1, 11))
    assert [int(line.get_ydata()[0]) for line in dots][:3] == [1, 8, 5]
    assert sum(line.get_markerfacecolor() == "white" for line in dots) == 5
    assert "of the filled ones" in all_text(drawn["choice"])
    assert "layers 1 and 4 from rank 2 to 8" in drawn["choice"].get_label()


def test_bytes_are_in_megabytes(drawn):
    figure = drawn["bytes_against_ppl"]
    assert "healed, 1.100" in texts(figure)
    assert "healed, 5 MB, 1.100 (1.080–1.120)" in figure.get_label()


# ---------------------------------------------------------------- parts


def test_labels_are_moved_apart_in_order_and_stay_inside():
    moved = parts.apart([0.5, 0.51, 0.1, 0.99], 0.1, 0.0, 1.0)
    assert np.all(np.diff(np.sort(moved)) > 0.0999) and moved.min() >= 0 and moved.max() <= 1
    assert list(np.argsort(moved)) == [2, 0, 1, 3] and moved[2] == pytest.approx(0.1)


def test_zoom_keeps_contenders_and_drops_what_is_four_times_further_out():
    low, high = parts.zoom([about(1.1), about(1.2), about(1.3), about(90.0)], 1.0)
    assert low < 1 and 1.3 < high < 1.5
    assert parts.zoom([about(1.1), about(1.3)], 1.0)[1] > 1.3
    assert parts.zoom([INFINITE], 1.0) == (0.5, 1.5)


def test_names_are_told_in_words():
    assert wording.words("greedy-2") == "greedy (SLEB), 2 fewer"
    assert wording.words("random_0-2") == "random 0, 2 fewer"
    assert wording.words("1 fewer") == "1 layer fewer"
    assert wording.words("replaceme, 2 fewer") == "ReplaceMe, 2 fewer"
    assert wording.idea("replaceme, 2 fewer") == "rival"
    assert wording.idea("whole, same text") == wording.idea(wording.words("whole, same text"))
    assert wording.idea("whole, same text") == "control"
    assert wording.idea("at once, healed") == "healed"
    assert wording.idea("ce") == "text" and wording.idea("block_influence-2") == "cut"


def test_numbers_have_three_decimals_below_ten_and_intervals_follow_their_point():
    assert [wording.number(v) for v in (1.0614, 14.26, 4_210.4)] == ["1.061", "14.3", "4,210"]
    assert wording.span(Interval(14.3, 9.217, 19.3, 4, 4.0)) == "9.2–19.3"
    assert wording.span(Interval(0.1, -0.1, 0.3, 4, 4.0)) == "-0.100 to 0.300"
