"""Numbers of a run, by hand; every picture, from made-up rows and a tiny run."""

import functools
import shutil

import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import ROOT
from test_tables import HELD_OUT, at_rates, row, write_rows

import bert
import masking
from support import state
from support.files import UserError, write_json
from tools import anatomy, drawing, figures, rows, run_figures, tables

PRUNED = ("magnitude", "l0", "movement", "soft_movement")


@pytest.fixture
def results(tmp_path):
    """A folder of CSV files; results(name, rows) adds one."""
    return functools.partial(write_rows, tmp_path)


# ---------------------------------------------------------------------------------- anatomy


def write_run(folder, W):
    """A folder of one layer, H = 4, two heads, four neurons, whose matrices all are W."""
    names = [bert.to_hf_name(f"bert.layers.0.{name}.weight") for name in anatomy.MATRICES]
    tensors = dict.fromkeys(names, W)
    folder.mkdir()
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    write_json(folder / "config.json", {
        "model_type": "bert", "hidden_size": 4, "num_attention_heads": 2,
        "intermediate_size": 4, "num_hidden_layers": 1, "vocab_size": 9})
    return list(tensors)


def write_metrics(run, method="movement", **more):
    write_json(run / "metrics.json",
               {"method": method, "density": 0.25, "scope": "local"} | more)


@pytest.fixture
def tiny_run(tmp_path):
    """A run that began with 1 and −1, column by column, and keeps the upper left quarters."""
    W0 = np.tile(np.array([1, -1, 1, -1], np.float32), (4, 1))
    W = 1.5 * W0
    W[0, 0] = -1.0  # kept, and changed sign
    W[3, 3] = -1.25  # pruned, and moved by half as much as all others
    M, ever_pruned = np.zeros((2, 4, 4), bool)
    M[:2, :2] = True  # of value: the first head; of ffn in: the first two neurons
    ever_pruned[0, 0] = ever_pruned[3] = True  # five of them, one kept in the end
    run = tmp_path / "run"
    write_run(tmp_path / "start", W0)
    pruning = {"mask": np.packbits(M), "pruned": W[~M], "ever_pruned": np.packbits(ever_pruned),
               "scores": np.where(M, 1, -1).astype(np.float32)}
    safetensors.numpy.save_file({
        f"{name}.{part}": x for name in write_run(run, W * M) for part, x in pruning.items()},
        run / "pruning.safetensors")
    write_json(run / "run.json", {"model": str(tmp_path / "start")})
    (run / "log.jsonl").write_text('{"step": 0, "loss": 3, "density": 1, "penalty": 0}\n')
    write_metrics(run)
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
    assert " · moved kept 0.875 · " in said and " · came back 0.2 · " in said
    assert said.startswith("movement, 25 %\nentries 96 · kept 24 · density 0.25 · ")
    assert said.endswith(" · dead heads 1 · dead neurons 2")


def test_anatomy_looks_through_gates(tiny_run):
    path = tiny_run / "pruning.safetensors"
    pruning = safetensors.numpy.load_file(path)
    W = np.arange(16, dtype=np.float32)  # the model holds W times gates; this file has W itself
    safetensors.numpy.save_file(
        {name: W if name.endswith(".pruned") else x for name, x in pruning.items()}, path)
    query = anatomy.read(tiny_run).parts[0]
    assert query.W.ravel().tolist() == W.tolist() and query.M.sum() == 4
    matrix = masking.Matrix("W", None, torch.ones(2, 2), M=torch.tensor([[0, 0.5], [1, 0]]),
                            ever_pruned=torch.ones(2, 2, dtype=torch.bool))
    state.save_pruning({"W": matrix}, path)
    assert safetensors.numpy.load_file(path)["W.pruned"].tolist() == [1] * 4


def test_anatomy_without_the_starting_weights(tiny_run):
    write_json(tiny_run / "run.json", {"model": "untrained"})
    a = anatomy.read(tiny_run)
    found = anatomy.table(a)
    assert "moved_kept" not in found[-1] and found[-1]["density"] == 0.25
    assert "random weights" in anatomy.text(a, found)


def test_anatomy_compares_with_what_the_run_began_with_alone(tiny_run):
    matrices, _ = anatomy.starting_weights(str(tiny_run.parent / "start"), None)
    begun = state.fingerprint({name: torch.from_numpy(x) for name, x in matrices.items()})
    for told, known in ((begun, True), ("0" * 64, False)):
        write_metrics(tiny_run, start_fingerprint=told)
        a = anatomy.read(tiny_run)
        assert ("moved_kept" in anatomy.table(a)[-1]) == known
        assert ("has changed since the run began" in a.note) != known


def test_a_damaged_run_is_named(tiny_run):
    write_json(tiny_run / "metrics.json", {})
    with pytest.raises(UserError, match=f"{tiny_run}: not a folder as train.py leaves it"):
        anatomy.read(tiny_run)


# ---------------------------------------------------------------------------------- figures


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """figures.main in this process → names of the pictures, and {picture: axes} of the last."""
    pytest.importorskip("matplotlib")
    axes = {}

    def run(*words):
        monkeypatch.setattr("sys.argv", ["tools.figures", *map(str, words), "--output",
                                         str(tmp_path / "figures")])
        figures.main()
        return {path.name for path in (tmp_path / "figures").iterdir()}, axes

    for module in (figures, run_figures):
        monkeypatch.setattr(module, "save", lambda figure, path: (
            axes.update({path.name: figure.axes}), drawing.save(figure, path)))
    return run


def png(*names):
    return {f"{name}.png" for name in names}


def test_curves_from_rows(results, draw, tmp_path):
    found = [row(method, keep, seed, 80 + seed) for method in PRUNED
             for keep in (0.3, 0.1) for seed in (0, 2)]
    found += [row("dense", 1, model=model, accuracy=90) for model in ("small", "small:1x64")]
    found += [row(keep=keep, teacher="t", accuracy=85) for keep in (0.3, 0.1)]
    found += [row("random", keep) for keep in (0.3, 0.1)] + [row(freeze="weights", accuracy=60)]
    found += [row(keep=keep, scope="global", accuracy=83) for keep in (0.3, 0.1)]
    found += [row("scores.py:Own", keep, scope="local", accuracy=70) for keep in (0.3, 0.1)]
    found += [row(keep=keep, accuracy=77, held_out="0.1", held_out_accuracy="99")
              for keep in (0.3, 0.1)]
    found += [row(keep=keep, seed=1) | HELD_OUT for keep in (0.3, 0.1)]  # not of evaluation rows
    found[0]["collapsed"] = "True"  # magnitude at 30 %
    names, axes = draw("--results", results("made", found))
    assert names == png("figure2-made", "figure2-controls-made", "figure3-made", "figure5-made")
    taught, controls = ([line.get_label() for line in axes[name][0].get_lines()]
                        for name in ("figure3-made", "figure2-controls-made"))
    assert taught == ["movement", "movement + teacher", "movement, 0.1 held out", "dense",
                      "95 % of dense"]
    assert {"random", "movement", "movement, weights frozen"} <= {*controls}
    assert not {"magnitude", "L0"} & {*controls}
    drawn = {line.get_label(): line for line in axes["figure2-made"][0].get_lines()}
    assert list(drawn) == ["magnitude", "with a collapsed run", "L0", "movement",
                           "movement, 0.1 held out", "soft movement", "Own", "dense",
                           "95 % of dense"]
    assert list(drawn["L0"].get_xdata()) == [10, 30] and list(drawn["L0"].get_ydata()) == [81, 81]
    crossed = drawn["with a collapsed run"]
    assert (list(crossed.get_xdata()), list(crossed.get_ydata())) == ([30], [81])
    assert drawn["dense"].get_ydata()[0] == 90 and drawn["95 % of dense"].get_ydata()[0] == 85.5
    assert "encoder's matrices (%)" in axes["figure2-made"][0].get_xlabel()
    band = axes["figure2-made"][0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (80, 82)  # from the worst to the best seed
    first = (tmp_path / "figures" / "figure2-made.png").read_bytes()
    draw("--results", tmp_path)
    assert (tmp_path / "figures" / "figure2-made.png").read_bytes() == first


def test_accuracy_and_movement_against_the_rate(results, draw):
    found = [*at_rates("movement", 80, 60, 50), *at_rates("magnitude", 60, 70, 80),
             *at_rates("dense", 60, 70, 80, keep=1)]
    found += [row(keep=keep, lr="1e-4", held_out="0.1") for keep in (0.1, 0.3)]
    found += [row(method, 0.03, task="qqp", lr="1e-4") for method in PRUNED]  # of one rate
    longer = row(keep=0.03, accuracy=99, lr="1e-4", held_out="0.1", steps="600", epochs="6")
    alone = row("dense", 1, model="untrained")  # a panel without a pruned model
    names, axes = draw("--results", results("made", [*found, longer, alone]))
    assert names == png("rates-made", "figure2-made")
    left, right = axes["rates-made"]
    drawn = {line.get_label(): line for line in left.get_lines()}
    assert list(drawn) == ["dense", "magnitude", "movement"]
    assert [*drawn["movement"].get_xdata()] == pytest.approx([1e-4, 2e-4, 3e-4])
    assert [*drawn["movement"].get_ydata()] == [74, 71, 72]
    assert [*right.get_lines()[-1].get_ydata()] == [1, 2, 3]
    assert "50.0 %" in left.texts[0].get_text() and left.get_title() == "sst2 · sample · 3 % left"
    figure2 = {line.get_label(): line for line in axes["figure2-made"][0].get_lines()}
    assert [*figure2["movement"].get_ydata()] == [74, 80, 80]  # at 1e-4
    assert [*figure2["magnitude"].get_ydata()] == [72]  # at 3e-4
    with_teacher = [row(keep=keep, accuracy=60, lr="3e-4", held_out="0.1", teacher=teacher)
                    for keep, teacher in ((0.1, ""), (0.1, "t"), (0.03, "t"))]  # not the best rate
    names, axes = draw("--results", results("made", [*found, *with_teacher]))
    assert names == png("rates-made", "figure2-made", "figure3-made")
    figure3 = {line.get_label(): line for line in axes["figure3-made"][0].get_lines()}
    assert [*figure3["movement"].get_ydata()] == [72, 60]
    assert [*figure3["movement + teacher"].get_ydata()] == [60, 60]
    with pytest.raises(UserError, match=r"two rows of sst2, movement, 0.03, seed 0"):
        draw("--results", results("made", [*found, longer | {"steps": "200", "hold": "0.3"}]))


def test_words_alone_are_a_line_where_the_panel_reaches_so_low(results, draw):
    folder = results("made", [row(keep=keep, accuracy=80 - 10 * keep, eval_rows="40")
                              for keep in (0.3, 0.1)])
    alike = {"task": "sst2", "data": "sample", "model": "small", "train_rows": 100}
    for evaluated, accuracy, line, text in (
            (40, 77.5, True, ""), (40, 74, True, ""), (40, 60, False, "\nwords alone: 60.0 %"),
            (50, 77.5, False, "")):
        words = alike | {"eval_rows": evaluated, "accuracy": accuracy}
        rows.write(folder / "words.csv", [words], words)
        _, axes = draw("--results", folder)
        [axis] = axes["figure2-made"]
        drawn = {one.get_label(): one for one in axis.get_lines()}
        assert ("words alone" in drawn) == line
        assert not line or drawn["words alone"].get_ydata()[0] == accuracy > axis.get_ylim()[0]
        assert axis.texts[0].get_text() == "one answer for all rows: 50.0 %" + text


def test_a_wrong_csv_keeps_no_other_from_being_drawn(results, draw, tmp_path):
    results("wrong-0.1", [row(), row(accuracy=90), row(keep=0.3)])  # two of one seed
    with pytest.raises(UserError, match=r"wrong-0.1.csv: two rows of sst2"):
        draw("--results", results("good-0.3", [row(), row(keep=0.3)]))
    assert {path.name for path in (tmp_path / "figures").iterdir()} == png("figure2-good-0.3")


def test_nothing_to_draw_is_said(results, draw, tmp_path):
    with pytest.raises(UserError, match="nothing to draw: no CSV file in"):
        draw("--results", results("made", [row(), row(seed=1), row("dense", 1)]))
    with pytest.raises(UserError, match="no such folder"):
        draw("--results", tmp_path / "nowhere")


def test_the_papers_runs_are_drawn_from_their_sheet(draw, tmp_path):
    (tmp_path / "paper_runs.csv").write_bytes((ROOT / "results" / "paper_runs.csv").read_bytes())
    names, axes = draw("--results", tmp_path)
    assert names == png("figure2-paper", "figure3-paper", "figure5-paper")
    assert [axis.get_title().split()[0] for axis in axes["figure2-paper"]] == [
        "mnli", "qqp", "squad"]
    (squad,) = axes["figure5-paper"]
    drawn = {line.get_label(): line for line in squad.get_lines()}
    assert list(drawn) == ["magnitude", "magnitude, global", "movement", "movement, global",
                           "dense", "95 % of dense"]
    assert len(drawn["movement"].get_xdata()) == 8 and squad.get_ylabel() == "F1 (%)"


def test_pictures_of_runs(tiny_run, draw, capsys):
    names, axes = draw("--run", tiny_run)
    assert names == png("curves", "figure1", "figure4a", "figure4b") | {"anatomy.csv"}
    assert [axis.get_ylabel() for axis in axes["curves"]] == ["loss", "density"]
    said = capsys.readouterr().out
    assert "movement, 25 %" in said and "no Figure 6: " in said
    write_metrics(tiny_run, scope="global")
    names, axes = draw("--run", tiny_run)
    assert names >= png("figure6", "figure6-matrices")
    assert list(axes["figure6"][0].get_lines()[0].get_ydata()) == [25]
    shutil.copytree(tiny_run, tiny_run.with_name("again"))
    _, axes = draw("--run", tiny_run, tiny_run.with_name("again"))
    assert [line.get_label() for line in axes["figure6"][0].get_lines()] == [
        "movement, 25 %, run", "movement, 25 %, again"]


def test_a_scatter_shows_what_is_kept_in_its_true_proportion():
    figure, axis = drawing.plt.subplots()
    x = np.arange(100_000.0)
    run_figures.scatter(axis, x, x, x % 50 == 0, "red")
    pruned, kept = (len(points.get_offsets()) for points in axis.collections)
    assert pruned + kept == 20_000 and kept == pytest.approx(400, abs=80)
    drawing.plt.close(figure)


def test_methods_look_the_same_everywhere_and_unlike_each_other():
    assert list(drawing.STYLES) == list(rows.METHOD_NAMES) == list(masking.METHODS)
    assert {m for m, method in masking.METHODS.items() if not method.ranked} == {*tables.GLOBAL}
    for part in zip(*drawing.STYLES.values(), *drawing.OWN_STYLES):
        assert len(set(part)) == len(drawing.STYLES) + len(drawing.OWN_STYLES)
    made = drawing.dashes([("movement", "movement"), ("movement", "movement, global"),
                           ("l0", "L0"), ("movement", "movement"), ("a.py:A", "A"),
                           ("b.py:A", "A, too")])
    assert made == {"movement": "-", "movement, global": "--", "L0": "-", "A": "-", "A, too": "--"}


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(drawing, "plt", None)
    monkeypatch.setattr("sys.argv", ["tools.figures"])
    with pytest.raises(UserError, match=r"pip install -r requirements-dev\.txt"):
        figures.main()
