"""What every figure promises: labels, colours, marks, and the same bytes for the same records."""

from __future__ import annotations

import math
import os
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from depthprune_core import figures
from depthprune_core.intervals import Interval, over_seeds, rank_stability, spearman
from depthprune_core.records import Curve, PairCosts, Profile, Score, Timing

N_LAYERS, N_DOCUMENTS, N_TOKENS = 12, 8, 256
RISES = (8.3, 1.2, 0.3, 0.21, 0.15, 0.002, 0.14, 0.12, 0.17, 0.2, 0.34, 1.1)  # layer 0 costs x4000 in perplexity
ARMS = ("least_sensitive", "greedy", "exhaustive", "contiguous", "evenly_spaced", "last_k", "random", "most_sensitive")


def make_profile(rises=RISES, *, noise=0.1, n_documents=N_DOCUMENTS) -> Profile:
    rng = np.random.default_rng(0)
    names = tuple(f"article {n}" for n in range(n_documents))
    teacher = Score(names, (3.0 * N_TOKENS,) * n_documents, (N_TOKENS,) * n_documents, (1_000,) * n_documents)

    def by_document(scale):
        return tuple(tuple(float(r * scale * N_TOKENS * (1 + noise * rng.normal())) for _ in names) for r in rises)

    return Profile(
        len(rises),
        teacher,
        {"drop_nll_nats": by_document(1.0), "drop_kl_nats": by_document(0.9), "block_influence": by_document(0.05)},
        {"taylor": tuple(r * rng.uniform(-0.2, 1) for r in rises), "magnitude": tuple(rng.uniform(90, 110, len(rises)))},
        {"1": tuple(0.1 + 0.03 * rng.normal() for _ in rises)},
    )


def make_pairs(n_layers=N_LAYERS) -> PairCosts:
    rng = np.random.default_rng(1)
    single = tuple(RISES[i % 12] for i in range(n_layers))
    pair = {
        f"{i},{j}": single[i] + single[j] + 0.1 * rng.normal() + 0.2 for i in range(n_layers) for j in range(i + 1, n_layers)
    }
    return PairCosts(n_layers, single, pair)


def make_curve(start, end) -> Curve:
    tokens = tuple(range(0, 250_001, 50_000))
    nll = tuple(3.0 + end + (start - end) * math.exp(-step / 50_000) for step in tokens)
    return Curve({"lr": 1e-4}, "abc", tokens, {"kl": nll}, tokens, nll)


def make_timing(ratio) -> Timing:
    rng = np.random.default_rng(2)
    slow, fast = rng.normal(50, 1, (2, 9)), rng.normal(50 / ratio, 1, (2, 9))
    lists = (tuple(slow[0]), tuple(fast[0]), tuple(slow[1]), tuple(fast[1]))
    return Timing("cpu", "float32", 1, 128, 64, 2, *lists, 1.2, 1.13, 1_000, 833)


def interval(point, half=0.03) -> Interval:
    return Interval(point, point - half, point + half, 8, 7.5)


SWEPT = {
    f"{factor}: {level}": interval(ratio)
    for factor, levels in {
        "optimiser and rate": {"adamw, 0.0001": 1.2, "adamw, 0.0004": 1.15, "muon, 0.0004": 1.13},
        "trained": {"all": 1.13, "after_first_cut": 1.14, "lora": 1.18},
    }.items()
    for level, ratio in levels.items()
}


def every_figure() -> dict[str, Figure]:
    profile = make_profile()
    ratios = {name: interval(1.12 + 0.02 * n) for n, name in enumerate(ARMS[:-1])} | {"most_sensitive": interval(4200.0, 800)}
    after = {name: interval(1.05 + 0.01 * n, 0.01) for n, name in enumerate(ARMS)}
    curves = {name: make_curve(0.21 + 0.02 * n, 0.055 + 0.004 * n) for n, name in enumerate(ARMS[:5])}
    draws = {"least_sensitive": (1.056, 1.057, 1.054), "greedy": (1.06, 1.063, 1.058), "width": (1.1, 1.12, 1.11)}
    student = make_profile(tuple(r * 1.4 for n, r in enumerate(RISES) if n not in (5, 7)))
    sizes = {name: (0.89, interval(1.05 + 0.006 * n, 0.004)) for n, name in enumerate(ARMS[:6])}
    sizes |= {"staged": (0.83, interval(1.13)), "distilled": (0.66, interval(1.4))}
    return {
        "profile_bars": figures.profile_bars(profile, dropped=(5, 7)),
        "criteria_panels": figures.criteria_panels(profile),
        "criteria_agreement": figures.criteria_agreement(spearman(profile.criteria)),
        "rank_stability": figures.rank_stability(rank_stability(profile), n_tokens_per_document=1_024),
        "pair_heatmap": figures.pair_heatmap(make_pairs(), chosen=(5, 7)),
        "arms": figures.arms(ratios, after=after),
        "speed": figures.speed({"least_sensitive": make_timing(1.17), "width": make_timing(1.08)}),
        "curves": figures.curves(curves, teacher_nll_nats=3.0),
        "controls": figures.controls(
            {"unrecovered": interval(1.23), "recovered": interval(1.06), "teacher + same text (CE)": interval(0.97)}
        ),
        "profiles_before_after": figures.profiles_before_after(
            profile, student, kept=[layer for layer in range(N_LAYERS) if layer not in (5, 7)]
        ),
        "seeds": figures.seeds(draws, {k: over_seeds(v) for k, v in draws.items()}, noise=interval(1.056, 0.015)),
        "sweep": figures.sweep(SWEPT, n_tokens=25_600),
        "before_after_scatter": figures.before_after_scatter(
            {f"{n},{n + 3}": (0.2 + 0.03 * n, 0.11 + 0.01 * (n % 5)) for n in range(12)}, old="0,3", new="5,8"
        ),
        "frontier": figures.frontier(sizes, xlabel="parameters kept (fraction of the teacher's)"),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    made = every_figure()
    folder = os.environ.get("DEPTHPRUNE_FIGS")  # to look at them
    for name, figure in made.items():
        data = figures.png(figure)
        if folder:
            Path(folder, f"{name}.png").write_bytes(data)
    return made


def data_axes(figure: Figure) -> list:
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def marks(figure: Figure, label: str) -> list:
    return [line for ax in figure.axes for line in ax.lines if line.get_label() == label]


def test_every_figure_labels_both_axes_with_units_where_there_are_some(drawn):
    for name, figure in drawn.items():
        for ax in data_axes(figure):
            assert ax.get_xlabel() and ax.get_ylabel(), name
    for name, unit in {
        "profile_bars": "(nats/token)",
        "criteria_panels": "nats/token",
        "rank_stability": "tokens each",
        "pair_heatmap": "(nats/token)",
        "curves": "(thousands)",
        "profiles_before_after": "(nats/token)",
    }.items():
        assert any(unit in text for text in texts(drawn[name])), name


def test_every_figure_has_a_title_and_a_readable_size(drawn):
    for name, figure in drawn.items():
        assert figure.get_suptitle() or all(ax.get_title(loc="left") for ax in data_axes(figure)), name
        assert 7 <= figure.get_figwidth() <= 8, name
        assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 9, name


def test_no_figure_draws_a_box(drawn):
    for name, figure in drawn.items():
        for ax in data_axes(figure):
            assert not ax.spines["top"].get_visible() and not ax.spines["right"].get_visible(), name


def test_equal_records_give_equal_png_bytes(drawn):
    for name, figure in every_figure().items():
        first = figures.png(figure)
        assert first == figures.png(figure), f"{name}, drawn twice"
        assert first == figures.png(drawn[name]), name


def test_png_is_small(drawn):
    for name, figure in drawn.items():
        assert len(figures.png(figure)) < 60_000, name


def test_pyplot_and_its_settings_stay_untouched():
    before = dict(matplotlib.rcParams)
    every_figure()
    assert plt.get_fignums() == [] and dict(matplotlib.rcParams) == before


def test_dropped_layers_are_marked():
    figure = figures.profile_bars(make_profile(), dropped=(5, 7))
    assert {"L5", "L7"} <= set(texts(figure))
    dropped, kept = marks(figure, "dropped"), marks(figure, "kept")
    assert [line.get_xdata()[0] for line in dropped] == [5, 7] and len(kept) == 10
    assert {line.get_marker() for line in dropped}.isdisjoint({line.get_marker() for line in kept})
    assert not marks(figures.profile_bars(make_profile()), "dropped")


def test_one_layer_far_worse_than_the_rest_puts_the_profile_on_a_log_axis():
    assert figures.profile_bars(make_profile()).axes[0].get_yscale() == "log"
    assert figures.profile_bars(make_profile((0.3, 0.2, 0.4))).axes[0].get_yscale() == "linear"


def test_an_interval_that_reaches_below_0_is_drawn_whole():
    figure = figures.profile_bars(make_profile((8.3, 0.01, 0.02, -0.01, 0.03, 0.02), noise=3.0))
    figures.png(figure)
    ax = figure.axes[0]
    lows = [segment[:, 1].min() for lines in ax.collections for segment in lines.get_segments()]
    assert ax.get_yscale() == "symlog" and min(lows) < 0 and ax.get_ylim()[0] <= min(lows)


def test_criteria_get_a_panel_each():
    profile = make_profile()
    figure = figures.criteria_panels(profile)
    assert len(figure.axes) == len(profile.criteria) == 6
    for ax, values in zip(figure.axes, profile.criteria.values(), strict=True):
        assert tuple(ax.lines[0].get_ydata()) == values


def test_interaction_colours_are_centred_at_0_and_the_chosen_pair_is_outlined():
    left, right = data_axes(figures.pair_heatmap(make_pairs(), chosen=(7, 5)))
    norm = right.images[0].norm
    assert norm.vmin == -norm.vmax
    for ax in (left, right):
        outlines = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
        assert {patch.get_xy() for patch in outlines} == {(4.5, 6.5)}


def test_pair_costs_stand_in_the_lower_triangle():
    pairs = make_pairs()
    grid = data_axes(figures.pair_heatmap(pairs))[0].images[0].get_array()
    assert grid[7, 5] == pairs.pair["5,7"] and np.ma.getmaskarray(grid)[5, 7]


def test_arms_are_sorted_and_controls_keep_their_order():
    ratios = {"random": interval(1.5), "greedy": interval(1.1), "width": interval(1.3)}
    assert row_names(figures.arms(ratios)) == ["greedy", "width", "random"]
    assert row_names(figures.controls(ratios)) == ["random", "greedy", "width"]


def test_the_teacher_line_is_drawn_at_1(drawn):
    for name in ("arms", "controls", "speed"):
        assert any(list(line.get_xdata()) == [1, 1] for line in drawn[name].axes[0].lines), name
    for name in ("curves", "seeds", "frontier"):
        assert any(list(line.get_ydata()) == [1, 1] for line in drawn[name].axes[0].lines), name


def test_recovery_is_a_filled_mark_on_the_row_of_its_arm():
    figure = figures.arms({"greedy": interval(1.2), "width": interval(1.4)}, after={"greedy": interval(1.05)})
    before, after = marks(figure, "greedy")
    assert before.get_markerfacecolor() == "white" and after.get_markerfacecolor() == figures.colour("greedy")
    assert (before.get_xdata()[0], after.get_xdata()[0]) == (1.2, 1.05)
    assert round(before.get_ydata()[0]) == round(after.get_ydata()[0]) == 0


def test_an_arm_only_seen_after_recovery_is_refused():
    with pytest.raises(ValueError, match="width"):
        figures.arms({"greedy": interval(1.2)}, after={"width": interval(1.1)})


def test_what_is_not_finite_is_said_in_words():
    ratios = {"greedy": Interval(1.2, 0.0, math.inf, 1, 1.0), "last_k": Interval(math.inf, math.inf, math.inf, 8, 8.0)}
    figure = figures.arms(ratios)
    assert figures.png(figure)
    assert "no interval" in texts(figure) and "last k: infinite, off the scale" in texts(figure)
    figure = figures.arms({"greedy": interval(1.2), "last_k": Interval(math.nan, math.nan, math.nan, 8, 8.0)})
    assert figures.png(figure) and "last k: not a number" in texts(figure)
    figure = figures.profile_bars(make_profile(n_documents=1))
    assert figures.png(figure) and not figure.axes[0].collections


def test_ratios_go_on_a_log_axis_only_beyond_3():
    assert figures.arms({"greedy": interval(1.2), "width": interval(2.5)}).axes[0].get_xscale() == "linear"
    assert figures.arms({"greedy": interval(1.2), "width": interval(40)}).axes[0].get_xscale() == "log"


def test_one_colour_per_arm_everywhere(drawn):
    for arm in ("least_sensitive", "greedy"):
        for name in ("arms", "curves", "seeds", "frontier"):
            found = marks(drawn[name], arm)
            assert found, (name, arm)
            assert {(to_hex(line.get_color()).upper(), line.get_marker()) for line in found} == {
                (figures.METHOD_COLOURS[arm], figures.marker(arm))
            }, name


def test_colours_follow_the_method_and_no_two_methods_share_one():
    assert len(set(figures.METHOD_COLOURS.values())) == len(figures.METHOD_COLOURS)
    assert figures.colour("random draw 3") == figures.colour("random_0") == figures.METHOD_COLOURS["random"]
    assert figures.colour("teacher + same text (CE)") != figures.colour("teacher")
    assert figures.colour("randomised") not in figures.METHOD_COLOURS.values()
    assert figures.colour("an arm to come") == "#5F7A8A"  # the same in every run, whatever PYTHONHASHSEED


def test_speed_shows_both_expectations_for_every_arm(drawn):
    lines = drawn["speed"].axes[0].lines
    assert [line.get_xdata()[0] for line in lines if line.get_marker() == "|"] == [1.2, 1.2]
    assert [line.get_xdata()[0] for line in lines if line.get_marker() == "d"] == [1.13, 1.13]
    assert row_names(drawn["speed"])[:2] == ["least sensitive, prefill", "least sensitive, decode"]


def test_curves_are_ppl_ratios_over_thousands_of_tokens():
    curve = make_curve(0.2, 0.05)
    line = marks(figures.curves({"greedy": curve}, teacher_nll_nats=3.0), "greedy")[0]
    assert list(line.get_xdata()) == [0, 50, 100, 150, 200, 250]
    assert line.get_ydata()[0] == pytest.approx(math.exp(0.2))


def test_names_beside_points_do_not_overlap(drawn):
    for name in ("curves", "frontier"):
        ax = drawn[name].axes[0]
        boxes = [Text.get_window_extent(text) for text in ax.texts]  # the words, without the line to the point
        assert len(boxes) >= 5
        assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n]), name
        assert all(box.x1 <= drawn[name].bbox.x1 and box.y1 <= drawn[name].bbox.y1 for box in boxes), name


def test_the_students_layers_stand_at_their_original_numbers():
    kept = [0, 1, 3, 4]
    figure = figures.profiles_before_after(make_profile((5, 1, 2, 3, 4)), make_profile((5, 1, 3, 4)), kept=kept)
    assert [round(line.get_xdata()[0]) for line in marks(figure, "after")] == kept
    assert [round(line.get_xdata()[0]) for line in marks(figure, "before")] == [0, 1, 2, 3, 4]
    assert [patch.get_label() for patch in figure.axes[0].patches] == ["dropped L2"]


def test_kept_layers_that_do_not_fit_the_profiles_are_refused():
    with pytest.raises(ValueError, match="kept"):
        figures.profiles_before_after(make_profile(), make_profile(RISES[:10]), kept=range(9))


def test_every_seed_is_a_point_beside_the_noise_of_the_test_set():
    values = (1.05, 1.06, 1.055)
    figure = figures.seeds({"greedy": values}, {"greedy": over_seeds(values)}, noise=interval(1.05))
    (line,) = marks(figure, "greedy")
    assert tuple(line.get_ydata()) == values and len(set(line.get_xdata())) == 3
    assert "bootstrap over documents" in texts(figure)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((1.05, math.inf, 1.055), "1 of 3 seeds: infinite, off the scale"),
        ((math.inf,) * 3, "3 of 3 seeds: infinite, off the scale"),
    ],
)
@pytest.mark.parametrize("noise", [1.05, math.inf])
def test_a_seed_whose_ratio_overflows_is_told_in_words(values: tuple[float, ...], said: str, noise: float):
    figure = figures.seeds({"greedy": values}, {"greedy": over_seeds(values)}, noise=Interval(noise, noise, noise, 5, 5.0))
    assert said in texts(figure)
    (line,) = marks(figure, "greedy")
    assert [y for y in line.get_ydata() if math.isfinite(y)] == [y for y in values if math.isfinite(y)]
    assert ("bootstrap over documents" in texts(figure)) == math.isfinite(noise)
    figures.png(figure)


def row_names(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_the_level_of_a_factor_that_was_kept_is_filled():
    (ax,) = data_axes(figures.sweep(SWEPT, n_tokens=25_600))
    faces = {
        line.get_label(): line.get_markerfacecolor() for line in ax.lines if line.get_label() in {"all", "lora", "muon, 0.0004"}
    }
    assert faces["all"] == faces["muon, 0.0004"] != "white"
    assert faces["lora"] == "white"
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[0] == "optimiser and rate: adamw, 0.0001" and labels[-1] == "trained: lora"


def test_the_longest_labels_leave_room_for_the_title():
    long = {f"rate, 62,464 tokens: adamw, {lr}": interval(1.2) for lr in ("5e-05", "0.0001")}
    figure = figures.sweep(SWEPT | long, n_tokens=25_600)
    figures.png(figure)
    (ax,) = data_axes(figure)
    (title,) = [text for text in ax.findobj(Text) if text.get_text() == ax.get_title(loc="left")]
    assert title.get_window_extent().x1 <= figure.bbox.x1
    assert "rate, 62,464 tokens: adamw, 5e-05" in [label.get_text() for label in ax.get_yticklabels()]


def test_the_best_set_before_and_the_best_after_are_told_apart():
    (ax,) = data_axes(
        figures.before_after_scatter({"1,2": (0.1, 0.3), "3,4": (0.2, 0.1), "5,6": (0.3, 0.2)}, old="1,2", new="3,4")
    )
    points = {(line.get_xdata()[0], line.get_ydata()[0]): line.get_marker() for line in ax.lines if len(line.get_xdata()) == 1}
    assert points == {(0.1, 0.3): "s", (0.2, 0.1): "X", (0.3, 0.2): "o"}
