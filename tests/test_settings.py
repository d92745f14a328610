from __future__ import annotations

import ast
import json
import logging
import shutil
from pathlib import Path
from typing import Any, get_args

import papermill
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from depthprune_study import places, rules, settings, verdict_rules
from depthprune_study.settings import SCHEMAS, StudyError

NOTEBOOKS = tuple(SCHEMAS)
STUDIES = settings.studies()
FILES = [(study, notebook) for study in STUDIES for notebook in NOTEBOOKS]


def values_of(study: str, notebook: str) -> dict[str, Any]:
    return yaml.safe_load((places.PARAMS / study / f"{notebook}.yaml").read_text(encoding="utf-8"))


def parameters_cell(notebook: str) -> str:
    cells = json.loads((places.NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    (cell,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return "".join(cell["source"])


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of params/ci that a test may spoil."""
    shutil.copytree(places.PARAMS / "ci", tmp_path / "ci")
    monkeypatch.setattr(places, "PARAMS", tmp_path)
    return tmp_path / "ci"


def changed(params: Path, notebook: str, **values: Any) -> None:
    path = params / f"{notebook}.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def problems(study: str = "ci") -> list[str]:
    with pytest.raises(StudyError) as error:
        settings.read_study(study)
    return str(error.value).split("\n")


# ---------------------------------------------------------------- the committed files


def test_the_studies_of_the_design_are_there() -> None:
    assert {"ci", "quick", "full", "smollm2"} <= set(STUDIES)


@pytest.mark.parametrize("study", STUDIES)
def test_every_committed_study_is_valid(study: str) -> None:
    assert tuple(settings.read_study(study)) == NOTEBOOKS


@pytest.mark.parametrize(("study", "notebook"), FILES)
def test_every_committed_file_holds_plain_values_that_papermill_takes(study: str, notebook: str) -> None:
    def is_plain(value: Any) -> bool:
        return type(value) in (str, int, float, bool) or (isinstance(value, list) and all(map(is_plain, value)))

    assert all(is_plain(value) for value in values_of(study, notebook).values())


@pytest.mark.parametrize(("study", "notebook"), FILES)
def test_every_committed_value_reaches_the_notebook_unchanged(study: str, notebook: str) -> None:
    values = values_of(study, notebook)
    assert settings.check(notebook, values).model_dump(mode="json") == values


@pytest.mark.parametrize(("study", "notebook"), FILES)
def test_every_line_of_a_committed_file_says_what_it_means(study: str, notebook: str) -> None:
    lines = (places.PARAMS / study / f"{notebook}.yaml").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.strip() and "  # " not in line] == []


@pytest.mark.parametrize("study", STUDIES)
def test_the_notebooks_of_a_study_agree_on_what_they_share(study: str) -> None:
    first_family = [notebook for notebook in NOTEBOOKS[:-1] if notebook != "04_transfer_tinyllama"]
    assert tuple(first_family) == settings.FIRST_FAMILY
    models = {values_of(study, notebook)["model"] for notebook in first_family}
    assert models == {values_of(study, "04_transfer_tinyllama")["first_model"]}
    for key in ("text", "max_documents"):
        assert len({values_of(study, notebook)[key] for notebook in NOTEBOOKS[:-1]}) == 1, key


# ---------------------------------------------------------------- the notebooks' parameters cells


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_parameters_cell_names_exactly_the_fields_of_its_schema(notebook: str) -> None:
    named = [node.target.id for node in ast.parse(parameters_cell(notebook)).body if isinstance(node, ast.AnnAssign)]
    assert sorted(named) == sorted(SCHEMAS[notebook].model_fields)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_papermill_reads_every_parameter_with_its_meaning(notebook: str) -> None:
    logging.getLogger("papermill").setLevel(logging.ERROR)
    read = papermill.inspect_notebook(str(places.NOTEBOOKS / f"{notebook}.ipynb"))
    assert sorted(read) == sorted(SCHEMAS[notebook].model_fields)
    assert [name for name, found in read.items() if not found["help"] or found["inferred_type_name"] == "None"] == []


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_the_defaults_are_the_quick_study(notebook: str) -> None:
    defaults = {node.target.id: ast.literal_eval(node.value) for node in ast.parse(parameters_cell(notebook)).body}
    assert defaults == values_of("quick", notebook)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_parameters_cell_has_one_name_type_value_and_meaning_a_line(notebook: str) -> None:
    for line in parameters_cell(notebook).splitlines():
        code, _, meaning = line.partition("  # ")
        (assignment,) = ast.parse(code).body
        assert isinstance(assignment, ast.AnnAssign), line
        assert meaning.strip(), line


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_no_line_of_a_parameters_cell_is_one_that_papermill_drops(notebook: str) -> None:
    for line in parameters_cell(notebook).splitlines():
        assert line.count("=") == 1, line
        assert "|" not in line, line


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_the_defaults_are_valid(notebook: str) -> None:
    defaults = {node.target.id: ast.literal_eval(node.value) for node in ast.parse(parameters_cell(notebook)).body}
    assert settings.check(notebook, defaults).study == "quick"


# ---------------------------------------------------------------- what is refused, and how it is told


def test_an_unknown_study_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(
        StudyError, match=r"^study 'nosuch' is not known: name one of ci, full, full-t4, quick, rehearsal, smollm2"
    ):
        settings.read_study("nosuch")


@pytest.mark.parametrize(
    ("notebook", "values", "sentence"),
    [
        (
            "03_recovery",
            {"temperatures": ["1e-4"]},
            "temperatures.0='1e-4': Input should be a valid number (YAML reads 1e-4 as text: write 1.0e-4)",
        ),
        (
            "03_recovery",
            {"lr_grid": [1e-4, "1e-4"]},
            "lr_grid.1='1e-4': Input should be a valid number (YAML reads 1e-4 as text: write 1.0e-4)",
        ),
        ("01_sensitivity", {"text": False}, "text=False: Input should be a valid string"),
        ("01_sensitivity", {"pairs": "yes"}, "pairs='yes': Input should be a valid boolean"),
        ("01_sensitivity", {"pairs": 1}, "pairs=1: Input should be a valid boolean"),
        ("01_sensitivity", {"seed": 1.5}, "seed=1.5: Input should be a valid integer"),
        ("01_sensitivity", {"seed": True}, "seed=True: Input should be a valid integer"),
        ("01_sensitivity", {"seed": -1}, "seed=-1: Input should be greater than or equal to 0"),
        ("01_sensitivity", {"seq_len": 7}, "seq_len=7: Input should be greater than or equal to 8"),
        ("01_sensitivity", {"seq_len": 10_000}, "seq_len=10000: Input should be less than or equal to 8192"),
        ("01_sensitivity", {"seq_len": None}, "seq_len=None: Input should be a valid integer"),
        ("01_sensitivity", {"seed": 2**32}, "seed=4294967296: Input should be less than or equal to 4294967295"),
        (
            "01_sensitivity",
            {"seed": 1 << 14_000},
            "seed=a number of 14,001 bits: Input should be less than or equal to 4294967295",
        ),
        ("01_sensitivity", {"max_documents": 10**400}, "max_documents=1000"),
        (
            "05_seed_stability",
            {"max_documents": 1},
            "max_documents=1: 0 (all) or at least 2 is wanted: a single document gives no interval",
        ),
        ("02_prune_gpt2", {"race_counts": [10**9]}, "race_counts.0=1000000000: Input should be less than or equal to 1000"),
        ("02_prune_gpt2", {"timed_context": 10**7}, "timed_context=10000000: Input should be less than or equal to 1000000"),
        ("03_recovery", {"tokens": 10**11}, "tokens=100000000000: Input should be less than or equal to 10000000000"),
        (
            "03_recovery",
            {"refit_tokens": 10**11},
            "refit_tokens=100000000000: Input should be less than or equal to 10000000000",
        ),
        ("05_seed_stability", {"seeds": [0, 2**64]}, "seeds.1=18446744073709551616: Input should be less than or equal to "),
        ("04_transfer_tinyllama", {"first_model": ""}, "first_model='': String should have at least 1 character"),
        ("01_sensitivity", {"device": "tpu"}, "device='tpu': Input should be 'auto', 'cpu' or 'cuda'"),
        ("01_sensitivity", {"model": ""}, "model='': String should have at least 1 character"),
        ("03_recovery", {"temperatures": [float("nan")]}, "temperatures.0=nan: Input should be a finite number"),
        ("03_recovery", {"temperatures": [float("inf")]}, "temperatures.0=inf: Input should be a finite number"),
        ("03_recovery", {"lr_grid": []}, "lr_grid=[]: List should have at least 1 item after validation, not 0"),
        ("03_recovery", {"lr_grid": [2.0]}, "lr_grid.0=2.0: Input should be less than or equal to 1"),
        ("03_recovery", {"rules": ["best"]}, "rules.0='best': Input should be 'least_sensitive', 'most_sensitive', 'greedy'"),
        (
            "03_recovery",
            {"trained_parts": ["none"]},
            "trained_parts.0='none': Input should be 'all' or 'after_first_cut'",
        ),
        ("03b_controls", {"bits": [1]}, "bits.0=1: Input should be greater than or equal to 2"),
        ("05_seed_stability", {"seeds": [0, 1, 0]}, "seeds=[0, 1, 0]: the seeds must differ from each other"),
        ("05_seed_stability", {"seeds": [0]}, "seeds=[0]: List should have at least 2 items after validation, not 1"),
        ("05_seed_stability", {"sedes": [0, 1]}, "sedes is not a parameter; known are study, model, text, max_documents, "),
        ("05_seed_stability", {"study": "quick"}, "study='quick' should be 'ci', as its folder says"),
    ],
)
def test_a_bad_value_is_told_with_file_key_value_and_what_is_allowed(
    params: Path, notebook: str, values: dict, sentence: str
) -> None:
    changed(params, notebook, **values)
    (problem,) = problems()
    assert problem.startswith(f"ci/{notebook}.yaml: {sentence}")


@pytest.mark.parametrize("notebook", settings.FIRST_FAMILY[1:])
@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [("model", "gpt2", "'gpt2-mini'"), ("text", "a.txt", "'wikipedia-excerpt'"), ("max_documents", 3, "4")],
)
def test_notebooks_that_read_each_others_records_have_one_model_and_one_text(
    params: Path, notebook: str, key: str, value: Any, wanted: str
) -> None:
    changed(params, notebook, **{key: value})
    assert problems() == [f"ci/{notebook}.yaml: {key}={value!r} should be {wanted}, as in 01_sensitivity.yaml"]


def test_a_profile_of_another_model_is_no_profile(params: Path) -> None:
    changed(params, "01_sensitivity", model="smollm2-135m")
    told = problems()
    assert [line.split(".")[0] for line in told] == [
        f"ci/{name}" for name in (*settings.FIRST_FAMILY[1:], "04_transfer_tinyllama")
    ]


@pytest.mark.parametrize(
    ("notebook", "values", "sentence"),
    [
        (
            "04_transfer_tinyllama",
            {"first_model": "llama-tiny"},
            "first_model='llama-tiny' should be 'gpt2-mini', the model of 01_sensitivity.yaml",
        ),
        ("03_recovery", {"drop_count": 4}, "drop_count=4 should be one of 02_prune_gpt2.yaml's drop_counts [2, 3]"),
        (
            "03_recovery",
            {"drop_count": 3, "rules": ["racing"]},
            "rules names racing, but 02_prune_gpt2.yaml's race_counts=[2] should hold drop_count=3",
        ),
    ],
)
def test_what_an_earlier_notebook_does_not_make_is_refused(params: Path, notebook: str, values: dict, sentence: str) -> None:
    changed(params, notebook, **values)
    assert problems() == [f"ci/{notebook}.yaml: {sentence}"]


def test_all_sets_are_not_searched_where_they_are_too_large(params: Path) -> None:
    changed(params, "02_prune_gpt2", exhaustive_to=2)
    changed(params, "03_recovery", drop_count=3, rules=["exhaustive", "last_k"])
    assert problems() == [
        "ci/03_recovery.yaml: rules names exhaustive, but for drop_count=3 02_prune_gpt2.yaml's exhaustive_to=2 should be at least 3"
    ]


@pytest.mark.parametrize("rule", get_args(settings.Rule))
def test_every_rule_that_notebook_02_applies_can_be_recovered(params: Path, rule: str) -> None:
    changed(params, "03_recovery", rules=[rule])
    assert settings.read_study("ci")["03_recovery"].rules == [rule]


def test_every_problem_of_a_study_is_told_at_once(params: Path) -> None:
    changed(params, "01_sensitivity", seq_len=1, pairs="yes", sead=3)
    changed(params, "05_seed_stability", seeds=[1, 1])
    (params / "02_prune_gpt2.yaml").unlink()
    (params / "03_recovery.yaml").write_text("- a list\n")
    (params / "04_transfer_tinyllama.yaml").write_text("model: [never closed\n")
    (params / "07_more.yaml").write_text("study: ci\n")
    told = problems()
    assert len(told) == 8
    spoilt = ("01_sensitivity", "02_prune_gpt2", "03_recovery", "04_transfer_tinyllama", "05_seed_stability", "07_more")
    assert {line.split(":")[0] for line in told} == {f"ci/{name}.yaml" for name in spoilt}


def test_a_missing_key_is_told(params: Path) -> None:
    (params / "06_report.yaml").write_text("{}\n")
    assert problems() == ["ci/06_report.yaml: study is missing"]


@pytest.mark.parametrize(
    "content", [b"model: [never closed\n", b"a: b: c\n", b"\xff\xfe", b"!!python/object:os.system x\n", b"[" * 5_000, b"\x00"]
)
def test_a_file_that_is_no_yaml_is_told_in_one_line(params: Path, content: bytes) -> None:
    (params / "06_report.yaml").write_bytes(content)
    (problem,) = problems()
    assert problem.startswith("ci/06_report.yaml: not readable as YAML (")


UNREADABLE = [
    "!!bool maybe", "!!timestamp x", '!!int ""', "2026-13-45", "9" * 5_000, "0x_", "!!float x", "1" + ":00" * 200 + ".5", "!!int",
]  # fmt: skip


@pytest.mark.parametrize("value", UNREADABLE)
def test_a_value_that_yaml_cannot_read_is_told_in_one_line(params: Path, value: str) -> None:
    (params / "06_report.yaml").write_text(f"study: {value}\n")
    (problem,) = problems()
    assert problem.startswith("ci/06_report.yaml: not readable as YAML (") and len(problem) < 300


@pytest.mark.parametrize("content", ["", "- study\n", "text\n", "3\n"])
def test_a_file_that_holds_no_parameters_is_told(params: Path, content: str) -> None:
    (params / "06_report.yaml").write_text(content)
    assert problems() == ["ci/06_report.yaml: a list of `name: value` lines is wanted"]


@pytest.mark.parametrize("name", ["3: x", "null: x", "2020-01-01: x", "? 0x" + "F" * 5_000 + "\n: x"])
def test_a_key_that_is_no_name_is_told(params: Path, name: str) -> None:
    (params / "06_report.yaml").write_text(f"study: ci\n{name}\n")
    (problem,) = problems()
    assert "is not a parameter" in problem


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_no_whole_number_is_without_an_upper_bound(notebook: str) -> None:
    values = values_of("ci", notebook)
    for key, value in values.items():
        huge = [10**400] if isinstance(value, list) else 10**400
        if type(value) is int or "int" in str(SCHEMAS[notebook].model_fields[key].annotation):
            with pytest.raises(StudyError, match=rf"^{notebook}: {key}"):
                settings.check(notebook, {**values, key: huge})


def test_a_missing_file_is_told(params: Path) -> None:
    (params / "01_sensitivity.yaml").unlink()
    assert problems() == ["ci/01_sensitivity.yaml: the file is missing"]


def test_a_notebook_that_is_run_by_hand_is_checked_in_the_same_words() -> None:
    with pytest.raises(StudyError, match=r"^06_report: study='Ünknown': String should match pattern"):
        settings.check("06_report", {"study": "Ünknown"})


# ---------------------------------------------------------------- the claims


@pytest.fixture
def claims_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of params/claims.yaml that a test may spoil."""
    path = Path(shutil.copy(places.PARAMS / "claims.yaml", tmp_path))
    monkeypatch.setattr(places, "PARAMS", tmp_path)
    return path


def problems_of_claims() -> list[str]:
    with pytest.raises(StudyError) as error:
        verdict_rules.read()
    return str(error.value).split("\n")


def test_the_committed_claims_are_valid_and_read_as_they_are_written() -> None:
    read = yaml.safe_load((places.PARAMS / "claims.yaml").read_text(encoding="utf-8"))
    assert verdict_rules.read().model_dump() == read


@pytest.mark.parametrize(
    ("written", "spoilt", "sentence"),
    [
        ("threshold: 1.13,", 'threshold: "1.13",', "C2.rule.threshold='1.13': Input should be a valid number"),
        ("threshold: 1.13,", "treshold: 1.13,", "C2.rule.threshold is missing|C2.rule.treshold is not a parameter"),
        (
            "kind: at_most_cut, threshold: 1.13",
            "kind: at_least, threshold: 1.13",
            "C2.rule.kind='at_least': Input should be 'at_most_cut'",
        ),
        ("values: [11.0, 17.0]", "values: [11.0]", "C1.rule.values=[11.0]: List should have at least 2 items"),
        ("threshold: 1.13,", "threshold: .nan,", "C2.rule.threshold=nan: Input should be a finite number"),
        ("pairs: 12", "pairs: 12.5", "C9.rule.pairs=12.5: Input should be a valid integer"),
        ("  source: 11 % / 17 %\n", "", "C1.source is missing"),
        ("C14:", "C15:", "C14 is missing|C15 is not a parameter; known are C1, C2, "),
        ("C2:", "C1:", "C1 is given more than once"),
        (
            "rule: {kind: at_most_cut, threshold: 1.13, removed: 0.11, tolerance: 0.1}",
            "rule: {kind: at_most_cut",
            "not readable as YAML (",
        ),
    ],
)
def test_a_spoilt_claim_is_told_with_its_key_its_value_and_what_is_wanted(
    claims_file: Path, written: str, spoilt: str, sentence: str
) -> None:
    content = claims_file.read_text(encoding="utf-8")
    assert written in content
    claims_file.write_text(content.replace(written, spoilt, 1), encoding="utf-8")
    wanted = sentence.split("|")
    assert [line[: len(f"params/claims.yaml: {want}")] for line, want in zip(problems_of_claims(), wanted, strict=True)] == [
        f"params/claims.yaml: {want}" for want in wanted
    ]


@pytest.mark.parametrize("content", [b"", b"- C1\n", b"\xff\xfe", b"C1", b"\x00"])
def test_a_file_that_holds_no_claims_is_told_in_one_line(claims_file: Path, content: bytes) -> None:
    claims_file.write_bytes(content)
    (problem,) = problems_of_claims()
    assert problem.startswith("params/claims.yaml: ")


# ---------------------------------------------------------------- whatever comes


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates() | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=2),
    max_leaves=5,
)


@given(data=st.data(), notebook=st.sampled_from(NOTEBOOKS))
@given_settings(max_examples=200, deadline=None)
def test_whatever_the_values_are_they_are_accepted_or_refused_in_a_sentence(data: st.DataObject, notebook: str) -> None:
    values: dict[Any, Any] = values_of("ci", notebook)
    keys = data.draw(st.lists(st.sampled_from([*values, "another", 3, None]), min_size=1, max_size=3))
    for key in keys:
        values[key] = data.draw(ANYTHING)
    try:
        accepted = settings.check(notebook, values)
    except StudyError as error:
        assert all(line.startswith(f"{notebook}: ") for line in str(error).split("\n"))
    else:
        assert accepted.model_dump() == values


@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@given_settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_file_holds_it_is_refused_in_a_sentence(params: Path, content: bytes) -> None:
    (params / "03_recovery.yaml").write_bytes(content)
    with pytest.raises(StudyError, match=r"^ci/03_recovery\.yaml: "):
        settings.read_study("ci")


def test_a_parameter_given_twice_is_refused(params: Path) -> None:
    with (params / "03_recovery.yaml").open("a", encoding="utf-8") as file:
        file.write("tokens: 4096\nseed: 1\n")
    assert problems() == [
        "ci/03_recovery.yaml: tokens is given more than once",
        "ci/03_recovery.yaml: seed is given more than once",
    ]


def test_a_parameter_may_name_exactly_the_rules_that_there_are():
    assert sorted(get_args(settings.Rule)) == sorted(rules.NAMES)
