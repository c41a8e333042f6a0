"""Tables from rows by hand; numbers of a run by hand; every picture is drawn from made-up rows."""

import csv
import json
import math
import re

import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import ROOT

from support import checkpoints as runs
from support.files import UserError
from tools import anatomy, figures, rows, tables

PRUNED = ("magnitude", "l0", "movement", "soft_movement")


def row(method="movement", keep=0.1, seed=0, accuracy=80.0, **other):
    """A row of a CSV; 1000 weights to prune, and 200 that are not."""
    made = dict.fromkeys(rows.COLUMNS, "") | {
        "task": "sst2", "data": "sample", "model": "small", "method": method,
        "scope": "local" if method in ("magnitude", "movement", "random") else "global",
        "keep": f"{keep:g}", "density": f"{keep:g}", "seed": str(seed), "epochs": "2",
        "accuracy": f"{accuracy:g}", "nonzero_parameters": str(round(1000 * keep)),
        "nonzero_parameters_total": str(round(1000 * keep) + 200), "train_rows": "100"}
    return made | other


@pytest.fixture
def results(tmp_path):
    """A folder of CSV files; write(name, rows) adds one."""
    def write(name, found):
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows.COLUMNS)
            writer.writeheader()
            writer.writerows(found)
        return tmp_path

    return write


def lines(markdown):
    """The cells of a table, line by line, without the caption."""
    return [[cell.strip() for cell in line.strip("|\n").split("|")]
            for line in markdown.splitlines() if line.startswith("|")]


# ---------------------------------------------------------------------------------- tables


def test_cells_are_mean_deviation_and_seeds(results):
    folder = results("made", [
        row(seed=0, accuracy=80), row(seed=1, accuracy=82), row(seed=2, accuracy=84),
        row(keep=0.03, accuracy=70), row("dense", 1, accuracy=90),
        row("l0", 0.1, density="0.12", on_target="False", accuracy=75)])
    assert lines(tables.table("made", {}, folder)) == [
        ["", "method", "100 %", "10 %", "3 %"], ["---"] * 5,
        ["sst2 accuracy", "dense", "90.0 (1)", "–", "–"],
        ["", "l0", "–", "75.0 (1, 12.0 % left)", "not run here"],
        ["", "movement", "–", "82.0 ± 2.0 (3)", "70.0 (1)"]]  # 80, 82, 84: n − 1 gives 2
    assert "data: sample; model: small; rows: `results/made.csv`" in tables.table(
        "made", {}, folder)


def test_density_is_shown_where_it_is_not_the_one_asked_for(results):
    folder = results("made", [
        row(density="0.1041", on_target="True"), row("l0", density="0.0949", on_target="False"),
        row("soft_movement", density="0.5")])  # a fixed penalty asks for none
    cells = {line[1]: line[2] for line in lines(tables.table("made", {}, folder))[2:]}
    assert cells == {
        "l0": "80.0 (1, 9.5 % left)", "movement": "80.0 (1)", "soft_movement": "80.0 (1)"}


def test_options_name_rows_columns_metrics_and_filters(results):
    folder = results("made", [
        row(f1="60"), row(seed=1, f1="62", teacher="t"), row(task="qqp", accuracy=50)])
    options = {"methods": "magnitude,movement", "keep": "0.10,0.03", "tasks": "sst2",
               "metric": "accuracy,f1", "teacher": ""}
    assert lines(tables.table("made", options, folder))[2:] == [
        ["sst2 accuracy / f1", "magnitude", "not run here", "not run here"],
        ["", "movement", "80.0 / 60.0 (1)", "not run here"]]
    assert [line[1] for line in lines(tables.table("made", {"tasks": "sst2"}, folder))[2:]] == [
        "movement", "movement + teacher"]
    with pytest.raises(UserError, match="has no column techer; did you mean teacher"):
        tables.table("made", {"techer": ""}, folder)


def test_what_sets_rows_apart_is_named(results):
    folder = results("made", [
        row(), row(epochs="5.98"), row(freeze="weights"), row(scope="global"),
        row("l0"), row("dense", 1), row("dense", 1, model="small:2x64")])
    assert [line[1] for line in lines(tables.table("made", {}, folder))[2:]] == [
        "dense, small", "dense, small:2x64", "l0", "movement, 2 epochs", "movement, 6 epochs",
        "movement, 2 epochs, global", "movement, 2 epochs, weights frozen"]


def test_two_rows_of_one_seed_are_no_mean(results):
    folder = results("made", [row(), row(accuracy=90, lr="1")])
    with pytest.raises(UserError, match=r"two rows of sst2, movement, 0.1, seed 0"):
        tables.table("made", {}, folder)
    assert lines(tables.table("made", {"by": "lr"}, folder))[2:] == [
        ["sst2 accuracy", "movement", "80.0 (1)"], ["", "movement, lr 1", "90.0 (1)"]]


def test_settings_that_differ_make_lines_of_their_own(results):
    folder = results("made", [
        row(lr="0.1", hold="0.2"), row(lr="0.2", hold="0.2"), row("l0", lr="0.1", hold="0.2"),
        row("dense", 1, hold="0.2"), row("dense", 1, 1, hold="0.4")])  # no dense run holds
    assert [line[1] for line in lines(tables.table("made", {}, folder))[2:]] == [
        "dense", "l0", "movement, lr 0.1", "movement, lr 0.2"]


@pytest.mark.parametrize("options, complaint", [
    ("methods", "methods: options are written NAME=VALUE"),
    ("keep=few", "keep=few is not a list of numbers"),
    ("metric=acuracy", "no column acuracy; did you mean accuracy"),
    ("columns=nope", "no column nope"),
    ("by=rl", "no column rl"),
])
def test_wrong_options_are_named(results, options, complaint):
    folder = results("made", [row()])
    with pytest.raises(UserError, match=f"table made: .*{complaint}"):
        tables.fill(f"<!-- table: made {options} -->\n<!-- end -->", folder)
    with pytest.raises(UserError, match="tasks=sst2: the paper has"):
        tables.table("paper_runs", {"tasks": "sst2"}, ROOT / "results")


def test_a_metric_that_a_task_has_not(results):
    folder = results("made", [row(), row(task="squad", f1="60") | {"accuracy": ""}])
    assert [line[-1] for line in lines(tables.table("made", {"metric": "f1"}, folder))[2:]] == [
        "– (1)", "60.0 (1)"]


def test_no_rows_at_all(tmp_path):
    assert tables.table("none", {}, tmp_path) == "*not run here*\n"
    asked = {"methods": "movement", "keep": "0.1", "tasks": "mnli"}
    assert lines(tables.table("none", asked, tmp_path))[2:] == [
        ["mnli", "movement", "not run here"]]


@pytest.mark.parametrize("distilled, method, cells", [  # as the paper prints them
    ("no", "magnitude", ["67.7 / 78.5", "40.1 / 54.5"]),
    ("no", "soft_movement", ["71.3 / 81.5", "69.5 / 79.9"]),
    ("yes", "movement", ["75.6 / 84.3", "67.5 / 78.0"]),
    ("yes", "soft_movement", ["76.6 / 84.9", "72.7 / 82.3"]),
])
def test_the_papers_tables_come_out_of_its_runs(distilled, method, cells):
    made = tables.table("paper_runs", {"distilled": distilled, "tasks": "squad"}, ROOT / "results")
    assert [line[2:] for line in lines(made) if line[1] == method] == [cells]
    assert "the paper's own results" in made


def test_a_benchmark_becomes_a_table(tmp_path):
    step = {"part": "methods", "name": "movement", "size": "2×8, 1×4 tokens", "ratio": 1.046,
            "low": 1.01, "high": 1.2, "ms": 12.3, "tokens_per_second": 4567.8}
    peak = {"part": "memory", "name": "l0", "size": "2×8", "ratio": 1.1, "bytes": 3 * 2**20}
    (tmp_path / "benchmark.json").write_text(json.dumps(
        {"machine": "M", "threads": 2, "torch": "T", "precision": "bf16", "rows": [peak, step]}))
    made = tables.table("benchmark", {"parts": "methods"}, tmp_path)
    assert lines(made) == [["part", "what", "model, batch", "ratio", "amount"], ["---"] * 5, [
        "methods", "movement", "2×8, 1×4 tokens", "1.05 (1.01 to 1.20)", "12 ms, 4,568 tokens/s"]]
    made = tables.table("benchmark", {"parts": "memory"}, tmp_path)
    assert lines(made)[2] == ["memory", "l0", "2×8", "1.10", "3 MB"]


def test_any_csv_as_it_is(tmp_path):
    (tmp_path / "made.csv").write_text("model,density,csr_ms\nA,0.03,1234.5\nB,0.1,\n")
    made = tables.table("made", {"columns": "density,csr_ms"}, tmp_path)
    assert lines(made) == [["density", "csr ms"], ["---"] * 2, ["0.03", "1,234"], ["0.1", "–"]]
    made = tables.table("made", {"columns": "density", "model": "B"}, tmp_path)
    assert lines(made)[2:] == [["0.1"]]
    assert "not run here" in tables.table("none", {"columns": "density"}, tmp_path)


def test_fill_changes_what_is_between_markers_only(results):
    folder = results("made", [row()])
    text = "before\n<!-- table: made keep=0.1 -->\nold\n<!-- end -->\nafter <!-- end -->\n"
    filled = tables.fill(text, folder)
    assert re.fullmatch(r"before\n<!-- table: made keep=0.1 -->\n\|[^<]*\| 80.0 \(1\) \|\n[^<]*"
                        r"<!-- end -->\nafter <!-- end -->\n", filled)
    assert tables.fill(filled, folder) == filled
    with pytest.raises(UserError, match="has no <!-- end -->"):
        tables.fill("<!-- table: made -->\n", folder)


def test_readme_shows_what_the_rows_say():
    for page in ("README.md", "PAPER.md", "results/README.md"):
        if (ROOT / page).exists():
            text = (ROOT / page).read_text(encoding="utf-8")
            assert tables.fill(text, ROOT / "results") == text, f"python -m tools.figures ({page})"


# ---------------------------------------------------------------------------------- anatomy


@pytest.fixture
def tiny_run(tmp_path):
    """A run of one layer, H = 4, two heads, four neurons; its starting weights are all ones."""
    def write(folder, tensors):
        folder.mkdir(exist_ok=True)
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({
            "model_type": "bert", "hidden_size": 4, "num_attention_heads": 2,
            "intermediate_size": 4, "num_hidden_layers": 1, "vocab_size": 9}))

    names = [f"bert.encoder.layer.0.{name}.weight" for name in anatomy.MATRICES]
    sign = np.array([1, -1, 1, -1], np.float32)
    start = {name: np.tile(sign, (4, 1)) for name in names}
    write(tmp_path / "start", start)
    pruning, model = {}, {}
    ever = np.zeros((4, 4), bool)
    ever[0, 0] = ever[3] = True  # five pruned at some time, one of them kept in the end
    for name in names:
        M = np.zeros((4, 4), bool)
        M[:2, :2] = True  # of value: the first head; of ffn in: the first two neurons
        trained = start[name] * np.float32(1.5)
        trained[0, 0] = -1.0  # kept, and changed sign
        trained[3, 3] = -1.25  # pruned, and moved by half as much as all others
        model[name] = trained * M
        pruning |= {f"{name}.mask": np.packbits(M), f"{name}.pruned": trained[~M],
                    f"{name}.scores": np.where(M, 1, -1).astype(np.float32),
                    f"{name}.ever_pruned": np.packbits(ever)}
    run = tmp_path / "run"
    write(run, model)
    safetensors.numpy.save_file(pruning, run / "pruning.safetensors")
    (run / "run.json").write_text(json.dumps({"model": str(tmp_path / "start")}))
    (run / "metrics.json").write_text(json.dumps({"method": "movement", "density": 0.25}))
    return run


def test_anatomy_by_hand(tiny_run):
    a = anatomy.read(tiny_run)
    query = a.parts[0]
    assert (a.label, a.heads, query.name) == ("movement, 25 %", 2, "query")
    assert query.W[3, 3] == -1.25 and query.W[0, 0] == -1.0 and query.S[0, 0] == 1
    found = anatomy.table(a)
    assert [r["matrix"] for r in found] == [*anatomy.MATRICES.values(), "all", "all"]
    first, whole = found[0], found[-1]
    assert (first["entries"], first["kept"], first["density"]) == (16, 4, 0.25)
    # standard deviation 1; kept: three moved by 0.5, one by 2; pruned: eleven by 0.5, one by 0.25
    assert first["moved_kept"] == pytest.approx((3 * 0.5 + 2) / 4)
    assert first["moved_pruned"] == pytest.approx((11 * 0.5 + 0.25) / 12)
    assert (first["grown"], first["flipped"]) == (3 / 4, 1 / 4)
    assert first["came_back"] == whole["came_back"] == 1 / 5
    assert whole["moved_kept"] == pytest.approx(first["moved_kept"])
    # the second head has no value rows left, neurons 3 and 4 nothing that goes into them
    assert (whole["dead_heads"], whole["dead_neurons"]) == (1, 2)
    said = anatomy.text(a, found)
    assert "nothing left of 1 of 2 heads and 2 of 4 neurons" in said
    assert "20.00 % of the weights ever pruned came back" in said


def test_anatomy_of_l0_looks_through_its_gates(tiny_run):
    (tiny_run / "metrics.json").write_text(json.dumps({"method": "l0", "density": 0.25}))
    query = anatomy.read(tiny_run).parts[0]
    gate = 1.2 / (1 + math.exp(-1)) - 0.1  # of a score of 1, at test time
    assert query.W[0, 1] == pytest.approx(-1.5 / gate) and query.W[3, 3] == -1.25


def test_anatomy_without_the_starting_weights(tiny_run):
    (tiny_run / "run.json").write_text(json.dumps({"model": "untrained"}))
    a = anatomy.read(tiny_run)
    found = anatomy.table(a)
    assert "moved_kept" not in found[-1] and found[-1]["density"] == 0.25
    assert "random weights" in anatomy.text(a, found)


def test_anatomy_compares_with_what_the_run_began_with_alone(tiny_run):
    matrices, _ = anatomy.starting_weights(str(tiny_run.parent / "start"), None)
    begun = runs.fingerprint({name: torch.from_numpy(x) for name, x in matrices.items()})
    for told, known in ((begun, True), ("0" * 64, False)):
        (tiny_run / "metrics.json").write_text(json.dumps(
            {"method": "movement", "density": 0.25, "start_fingerprint": told}))
        a = anatomy.read(tiny_run)
        assert ("moved_kept" in anatomy.table(a)[-1]) == known
        assert ("has changed since the run began" in a.note) != known


def test_a_damaged_run_is_named(tiny_run):
    (tiny_run / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match=f"{tiny_run}: not a folder as train.py leaves it"):
        anatomy.read(tiny_run)


# ---------------------------------------------------------------------------------- figures


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """figures.main in this process → names of the pictures, and {picture: axes} of the last."""
    pytest.importorskip("matplotlib")
    axes = {}
    save = figures.save

    def keep(figure, path):
        axes[path.name] = figure.axes
        save(figure, path)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["tools.figures", *map(str, words), "--output",
                                         str(tmp_path / "figures")])
        figures.main()
        return {path.name for path in (tmp_path / "figures").iterdir()}, axes

    monkeypatch.setattr(figures, "save", keep)
    return run


def both(*names):
    return {f"{name}.{kind}" for name in names for kind in ("png", "svg")}


def test_curves_from_rows(results, draw, tmp_path):
    found = [row(method, keep, seed, 80 + seed) for method in PRUNED
             for keep in (0.3, 0.1) for seed in (0, 2)]
    found += [row("dense", 1, model=m, accuracy=90, nonzero_parameters=n)
              for m, n in (("small", "1000"), ("small:1x64", "300"))]
    found += [row(keep=keep, teacher="t", accuracy=85) for keep in (0.3, 0.1)]
    found += [row(keep=keep, scope="global", accuracy=83) for keep in (0.3, 0.1)]
    found += [row(held_out="0.1", lr=lr, accuracy=99) for lr in ("1", "2")]  # not results
    readme = tmp_path / "page.md"
    readme.write_text("<!-- table: made methods=dense -->\n<!-- end -->\n")
    names, axes = draw("--results", results("made", found), "--pages", readme)
    assert names == both("figure2-made", "figure2-encoder-parameters-made",
                         "figure2-all-parameters-made", "figure3-made", "figure5-made")
    drawn = {line.get_label(): line for line in axes["figure2-made"][0].get_lines()}
    assert {*PRUNED, "dense", "95 % of dense"} == set(drawn)
    assert list(drawn["l0"].get_xdata()) == [10, 30] and list(drawn["l0"].get_ydata()) == [81, 81]
    assert drawn["dense"].get_ydata()[0] == 90 and drawn["95 % of dense"].get_ydata()[0] == 85.5
    assert "encoder's matrices (%)" in axes["figure2-made"][0].get_xlabel()
    band = axes["figure2-made"][0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (80, 82)  # from the worst to the best seed
    stars = next(line for line in axes["figure2-encoder-parameters-made"][0].get_lines()
                 if line.get_label() == "dense, by size")
    assert list(stars.get_xdata()) == [300, 1000]
    assert "90.0 (1)" in readme.read_text()
    first = (tmp_path / "figures" / "figure2-made.svg").read_bytes()
    draw("--results", tmp_path, "--pages", readme)
    assert (tmp_path / "figures" / "figure2-made.svg").read_bytes() == first


def test_a_wrong_csv_keeps_no_other_from_being_drawn(results, draw, tmp_path):
    results("wrong-0.1", [row(), row(accuracy=90), row(keep=0.3)])  # two of one seed
    with pytest.raises(UserError, match=r"wrong-0.1.csv: two rows of sst2"):
        draw("--results", results("good-0.3", [row(), row(keep=0.3)]))
    assert {path.name for path in (tmp_path / "figures").iterdir()} == both("figure2-good-0.3")
    with pytest.raises(UserError, match="no such folder"):
        draw("--results", tmp_path / "nowhere")


def test_the_papers_runs_are_dashed_and_named(draw, tmp_path):
    figures.plt.rcParams.update(figures.LOOK)
    figures.from_paper(rows.read(ROOT / "results" / "paper_runs.csv"), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == both(
        "figure2-paper", "figure3-paper", "figure5-paper")


def test_pictures_of_runs(tiny_run, draw, capsys):
    names, axes = draw("--run", tiny_run)
    assert names == both("figure1", "figure4a", "figure4b", "figure6",
                         "figure6-matrices") | {"anatomy.csv"}
    assert list(axes["figure6"][0].get_lines()[0].get_ydata()) == [25]
    assert "movement, 25 %" in capsys.readouterr().out


def test_methods_look_the_same_everywhere_and_unlike_each_other():
    assert set(figures.STYLES) == set(figures.masking.METHODS)
    for part in zip(*figures.STYLES.values()):
        assert len(set(part)) == len(figures.STYLES)
    made = figures.dashes([("movement", "movement"), ("movement", "movement, global"),
                           ("l0", "l0"), ("movement", "movement")])
    assert made == {"movement": "-", "movement, global": "--", "l0": "-"}


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(figures, "plt", None)
    monkeypatch.setattr("sys.argv", ["tools.figures"])
    with pytest.raises(UserError, match=r"pip install -r requirements-dev\.txt"):
        figures.main()
