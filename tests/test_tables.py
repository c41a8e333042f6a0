"""The pages' tables, by hand, from made-up rows."""

import functools
import re

import pytest
from conftest import ROOT

from support.files import UserError, write_json
from tools import benchmark, rows, tables

# what is measured of a run of an earlier version with --held-out, besides row()
HELD_OUT = {"accuracy": "", "held_out": "0.1", "held_out_accuracy": "70"}


def row(method="movement", keep=0.1, seed=0, accuracy=80.0, **other):
    """A row of a CSV; 1000 weights to prune, and 200 that are not."""
    made = dict.fromkeys(rows.COLUMNS, "") | {
        "task": "sst2", "data": "sample", "model": "small", "method": method,
        "scope": "local" if method in ("magnitude", "movement", "random") else "global",
        "keep": f"{keep:g}", "density": f"{keep:g}", "seed": str(seed), "epochs": "2",
        "steps": "200",
        "accuracy": f"{accuracy:g}", "nonzero_parameters": str(round(1000 * keep)),
        "nonzero_parameters_total": str(round(1000 * keep) + 200), "train_rows": "100"}
    return made | other


def write_rows(folder, name, found):
    """A CSV file → its folder."""
    rows.write(folder / f"{name}.csv", found, rows.COLUMNS)
    return folder


@pytest.fixture
def results(tmp_path):
    """A folder of CSV files; results(name, rows) adds one."""
    return functools.partial(write_rows, tmp_path)


def lines(markdown):
    """The cells of a table, line by line, without the caption."""
    return [[cell.strip() for cell in line.strip("|\n").split("|")]
            for line in markdown.splitlines() if line.startswith("|")]


@pytest.fixture
def table(results):
    """The lines of a table of made-up rows, below its two lines of header."""
    def make(kind, found, tasks="sst2"):
        return lines(tables.KINDS[kind](results("made", found), "made", tasks))[2:]

    return make


def test_cells_are_mean_deviation_and_seeds(results):
    made = tables.KINDS["methods"](results("made", [
        row(seed=0, accuracy=80), row(seed=1, accuracy=82), row(seed=2, accuracy=84),
        row(keep=0.03, accuracy=70, collapsed="True"), row("dense", 1, accuracy=90), row(keep=0.3),
        row("l0", 0.1, density="0.12", on_target="False", accuracy=75),
        row("soft_movement", 0.03, density="0.0304", on_target="True")]), "made", "sst2")
    assert lines(made) == [
        ["", "method", "100 %", "10 %", "3 %"], ["---"] * 5,
        ["sst2 accuracy", "dense", "90.0 (1)", "–", "–"],
        ["", "L0", "–", "75.0 (1, 12.0 % left)", "–"],
        ["", "movement", "–", "82.0 ± 2.0 (3)", "70.0 (1)†"],  # n − 1 gives 2
        ["", "soft movement", "–", "–", "80.0 (1)"]]
    assert "`--data sample --model small`; rows: `results/made.csv`. A † marks a col" in made


def test_rows_of_the_held_out_share_are_measured_apart(results, table):
    found = [row(), row(seed=1) | HELD_OUT, row(seed=2, held_out="0.1", held_out_accuracy="74"),
             row(seed=3, teacher="t", held_out="0.1", held_out_accuracy="90")]
    made = tables.KINDS["methods"](results("made", found), "made", "sst2")
    assert lines(made)[2:] == [["sst2 accuracy", "movement", "80.0 (1)"],
                               ["", "movement, 0.1 held out", "80.0 (1)"]] and "†" not in made
    assert table("held_out", found) == [
        ["sst2 held_out_accuracy", "movement", "72.0 ± 2.8 (2)"]]


@pytest.mark.parametrize("kind, columns, expected", [
    ("methods", 3, {"dense, small": 1, "dense, untrained": 1, "L0": 2, "movement": 2,
                    "movement, global": 1}),
    ("densities", 4, {"dense": 1, "magnitude": 1, "L0": 2, "movement": 2, "movement, global": 1}),
    ("teachers", 1, {"L0": 1, "L0, alpha 0.9 + teacher": 1, "L0, alpha 1 + teacher": 1}),
    ("frozen", 1, {"movement": 1, "movement, weights frozen": 1}),  # of one seed
])
def test_kinds_of_table_choose_among_the_rows(table, kind, columns, expected):
    made = table(kind, [
        row("dense", 1), row("dense", 1, model="untrained"),
        row("l0", teacher="t", alpha="0.9"), row("l0", teacher="t", alpha="1"), row("l0"),
        row("l0", 0.03), row(freeze="weights"), row(), row(scope="global"), row(seed=1),
        row("magnitude", 0.3), row(task="qqp", accuracy=70)])
    runs_in = {line[1]: sum(map(int, re.findall(r"\((\d)\)", " ".join(line)))) for line in made}
    assert runs_in == expected and {len(line) for line in made} == {2 + columns}


def test_a_teacher_is_compared_at_its_own_rate_and_length(table):
    made = table("teachers", [
        row(teacher="t", lr="1e-4"), row(lr="1e-4"), row(seed=1, accuracy=82, lr="1e-4"),
        row(seed=2, lr="2e-4"), row(seed=3, lr="1e-4", steps="20"),
        row(seed=4, lr="1e-4", model="other")])
    assert [line[1:] for line in made] == [["movement", "81.0 ± 1.4 (2)"],
                                           ["movement + teacher", "80.0 (1)"]]


def test_runs_of_several_lengths(table):
    short, usual = {"steps": "20", "epochs": "1"}, {"steps": "60", "epochs": "3"}
    made = table("lengths", [row() | usual, row(seed=1) | usual, row() | short, row("l0") | usual,
                             row(lr="1e-1") | usual, row(teacher="t") | short])
    assert [line[1:] for line in made] == [["movement, 1 epoch", "80.0 (1)"],
                                           ["movement, 3 epochs", "80.0 ± 0.0 (2)"]]


def test_several_tasks_each_with_its_own_metric(table):
    made = table("methods", [row(), row(task="squad", f1="60") | {"accuracy": ""}],
                 "squad,sst2")
    assert made == [["squad f1", "movement", "60.0 (1)"], ["sst2 accuracy", "movement", "80.0 (1)"]]


def at_rates(method, *held_out, keep=0.03, better=0):
    """Rows of seed 0 at rates 1e-4, 2e-4, …, and one of seed 1 at the first, `better` by so much on
    the rows held out; accuracy 70, 71, …"""
    made = [row(method, keep, 0, 70 + i, lr=f"{i + 1}e-4", held_out="0.1", moved_kept=f"{i + 1}",
                held_out_accuracy=str(value)) for i, value in enumerate(held_out)]
    return [*made, row(method, keep, 1, 78, lr="1e-4", held_out="0.1", moved_kept="1",
                       held_out_accuracy=str(held_out[0] + better))]


def test_the_best_rate_is_chosen_on_the_held_out_rows_by_the_seeds_that_rates_share(results):
    found = [*at_rates("movement", 70, 75, better=12), *at_rates("magnitude", 70, 75, better=12),
             row("movement", 0.03, 1, 71, lr="2e-4", held_out="0.1", held_out_accuracy="76"),
             row("magnitude", 0.1, 0, 90, lr="2e-4", held_out="0.1"),
             row("magnitude", 0.1, 1, 91, lr="1e-4", held_out="0.1"),
             row("dense", 1, lr="3e-5", held_out="0.1"),
             row("movement", 0.03, 0, 99, lr="1e-4", held_out="0.1", steps="600", epochs="6")]
    made = tables.KINDS["best"](results("made", found), "made", "sst2")
    assert lines(made)[2:] == [
        ["sst2 accuracy", "dense", "80.0 (1)", "–", "–"],
        ["", "magnitude", "–", "90.0 (1)", "71.0 (1)"],
        ["", "movement", "–", "–", "74.0 ± 5.7 (2)"]]
    assert "; learning rates: movement 1e-4, magnitude 2e-4, dense 3e-5; rows: " in made


def test_a_density_with_rates_of_its_own_has_a_best_one_of_its_own(results):
    found = [*at_rates("movement", 80, 60, 70), *at_rates("movement", 60, 70, keep=0.1),
             row("movement", 0.3, lr="1e-4", held_out="0.1"),
             row("movement", 0.3, 1, lr="2e-4", held_out="0.1"),
             row("dense", 1, lr="3e-5", held_out="0.1")]
    kept = [(r["keep"], r["lr"]) for r in found if tables.at_best_rate(r, found)]
    assert kept == [("0.03", "1e-4"), ("0.03", "1e-4"), ("0.1", "2e-4"), ("0.3", "1e-4"),
                    ("1", "3e-5")]
    made = tables.KINDS["best"](results("made", found), "made", "sst2")
    assert lines(made)[2:] == [["sst2 accuracy", "dense", "80.0 (1)", "–", "–"],
                               ["", "movement", "–", "71.0 (1)", "74.0 ± 5.7 (2)"]]
    assert "; learning rates: movement 1e-4 at 3 %, movement 2e-4 at 10 %, dense 3e-5; " in made
    made = tables.KINDS["held_out"](results("made", found), "made", "sst2")
    assert [line[1] for line in lines(made)[2:]] == [
        "movement, lr 1e-4", "movement, lr 2e-4", "movement, lr 3e-4"]


def test_settings_that_differ_make_lines_of_their_own(table):
    made = table("methods", [
        row(lr="0.1", hold="0.2"), row(lr="0.2", hold="0.2"), row("l0", lr="0.1", hold="0.2"),
        row("magnitude", epochs="2.001"), row("magnitude", epochs="5.98"),
        row("magnitude", epochs="5.98", scope="global"), row("random", held_out="0.1"),
        *(row(name, scope="local") for name in ("a.py:Own", "b.py:Own", "c.py:Other")),
        row("dense", 1, hold="0.2"), row("dense", 1, 1, hold="0.4")])  # no dense run holds
    assert [line[1] for line in made] == [
        "dense", "random, 0.1 held out", "magnitude, 2 epochs", "magnitude, 6 epochs",
        "magnitude, 6 epochs, global", "L0", "movement, lr 1e-1", "movement, lr 2e-1", "Other",
        "a.py:Own", "b.py:Own"]


@pytest.mark.parametrize("runs, method, cells", [  # as the paper prints them
    ("untaught", "magnitude", ["67.7 / 78.5", "40.1 / 54.5"]),
    ("taught", "soft movement", ["76.6 / 84.9", "72.7 / 82.3"]),
])
def test_the_papers_tables_come_out_of_its_runs(runs, method, cells):
    squad = lines(tables.paper(ROOT / "results", runs))[2:6]
    assert [line[2:] for line in squad if line[1] == method] == [cells]


def test_a_benchmark_becomes_a_table(tmp_path):
    step = {"part": "methods", "name": "movement", "size": "2×8, 1×4 tokens", "ratio": 1.046,
            "low": 1.01, "high": 1.2, "ms": 12.3, "tokens_per_second": 4567.8}
    write_json(tmp_path / "benchmark.json", {
        "machine": "M", "threads": 2, "torch": "T", "precision": "bf16",
        "rows": [{"part": "memory", "name": "l0", "size": "S", "ratio": 1.5, "bytes": 2**21},
                 *(step | {"part": part} for part in benchmark.PARTS[1:])]})
    assert lines(tables.benchmark(tmp_path, "benchmark", "methods,memory")) == [
        ["part", "what", "model, batch", "ratio", "amount"], ["---"] * 5,
        ["memory", "l0", "S", "1.50", "2 MB"],
        ["methods", "movement", "2×8, 1×4 tokens", "1.05 (1.01 to 1.20)", "12 ms, 4,568 tokens/s"]]
    assert len(lines(tables.benchmark(tmp_path, "benchmark", ",".join(benchmark.PARTS)))) == 2 + 6
    with pytest.raises(UserError, match=f"no part buckets, only {', '.join(benchmark.PARTS)}"):
        tables.benchmark(tmp_path, "benchmark", "methods,buckets")


def test_a_bar_ends_no_cell(tmp_path):
    (tmp_path / "made.csv").write_text("a,b\n|S|,1\n")
    assert r"| \|S\| | 1 |" in tables.csv(tmp_path, "made", "a,b")


def test_any_csv_as_it_is(tmp_path):
    (tmp_path / "made.csv").write_text("layer,matrix,csr_ms\n1,query,1\nall,all,1234.5\nall,all,\n")
    assert lines(tables.csv(tmp_path, "made", "layer,csr_ms")) == [
        ["layer", "csr ms"], ["---"] * 2, ["all", "1,234"], ["", "–"]]


@pytest.mark.parametrize("marker, complaint", [
    ("metods made sst2", "no such kind of table; did you mean methods"),
    ("methods made", "missing 1 required positional argument: 'tasks'"),
    ("methods made sst2 accuracy", "positional arguments"),
    ("methods maid sst2", "no rows in results/maid.csv"),
    ("methods made sst2,sts", "results/made.csv has no such rows of sts"),
    ("methods twice sst2", "two rows of sst2, movement, 0.1, seed 0"),
    ("methods wrong sst2", "wrong.csv:2: accuracy 'x' is not a number; mend or remove this row"),
    ("methods earlier sst2", "results/earlier.csv has no such rows of sst2"),
    ("csv made acuracy", "no column 'acuracy'"),
    ("benchmark benchmark methods,theirs", "results/benchmark.json has no part theirs"),
    ("paper tought", "taught or untaught"),
    ("", "no such kind of table"),
])
def test_wrong_markers_are_named_with_their_page(results, tmp_path, marker, complaint):
    results("twice", [row(), row(accuracy=90)])
    results("wrong", [row() | {"accuracy": "x"}])
    results("earlier", [row() | HELD_OUT])
    write_json(tmp_path / "benchmark.json", {"rows": [{"part": "methods"}]})
    folder = results("made", [row()])
    with pytest.raises(UserError) as error:
        tables.fill(f"<!-- table: {marker} -->\n<!-- end -->", folder, "PAGE.md")
    assert str(error.value).startswith(f"PAGE.md: <!-- table: {marker} -->: ")
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_fill_changes_what_is_between_markers_only(results):
    folder = results("made", [row()])
    text = "before\n<!-- table: methods made sst2 -->\nold\n<!-- end -->\nafter <!-- end -->\n"
    filled = tables.fill(text, folder, "PAGE.md")
    assert re.fullmatch(r"before\n<!-- table: methods made sst2 -->\n\|[^<]*\| 80.0 \(1\) \|\n[^<]*"
                        r"<!-- end -->\nafter <!-- end -->\n", filled)
    assert tables.fill(filled, folder, "PAGE.md") == filled
    with pytest.raises(UserError, match=r"PAGE.md: a <!-- table: … --> has no <!-- end -->"):
        tables.fill("<!-- table: methods made sst2 -->\n", folder, "PAGE.md")


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_show_what_the_rows_say(page):
    text = page.read_text(encoding="utf-8")
    assert tables.fill(text, ROOT / "results", page) == text, "python -m tools.tables"
