"""A score, a task and a model of one's own, without touching a file of the project."""

import itertools
import json
import re
import shutil

import numpy as np
import pytest
import torch
from tiny import TRAIN, WORDS, check_refused, digests, tsv

import data
import masking
from examples import fisher, platon
from support import own
from support.files import UserError, read_json, write_atomically
from tools import rows, sweep

GROWN = """import masking

class Grown(masking.Method):
    learned = True

    def scores(self, W, S):
        return W.abs() * (S > 0)

    def score_gradient(self, W, dL_dW_prime, S, dM_dS):
        return dL_dW_prime * W
"""

# ------------------------------------------------------------------------------ an own score


def test_an_own_score_goes_through_every_command(place):
    write_atomically("own.py", GROWN)
    words = ("--methods", "own.py:Grown", "--keep", "0.5,0.1", "--keep-runs", "runs")
    place("tools.sweep", *TRAIN, *words, "--csv", "rows/own.csv").succeeded()
    found = rows.read(place.folder / "rows" / "own.csv")
    assert [row["method"] for row in found] == ["own.py:Grown"] * 2
    place("tools.figures", "--results", "rows", "--output", "pictures").succeeded()
    assert (place.folder / "pictures" / "figure2-own.png").exists()
    [run, _] = sorted((place.folder / "runs").glob("sst2-Grown-*"))
    assert (run / "method.py").read_text() == GROWN
    assert read_json(run / "run.json")["method_digest"] == own.digest("own.py:Grown")
    place("tools.figures", "--run", run, "--output", "pictures").succeeded()
    assert {"curves.png", "figure4b.png"} <= {p.name for p in place.folder.glob("pictures/*")}
    key = sweep.make_run([*TRAIN, "--method", "own.py:Grown", "--keep", "0.1"]).key
    assert key == found[1]["key"]
    write_atomically("own.py", GROWN.replace("> 0", ">= 0"))
    assert key != sweep.make_run([*TRAIN, "--method", "own.py:Grown", "--keep", "0.1"]).key
    write_atomically("own.py", "1 / 0")  # evaluate.py and export.py need no method
    shutil.copy("own.py", run / "method.py")
    (run / "SHA256SUMS").unlink()
    place("evaluate.py", run).succeeded()
    place("export.py", run).succeeded()
    check_refused(place.train("--method", "own.py:Grown", output="new"), "own.py:1: ZeroDivision")


@pytest.mark.parametrize("text, said", [
    ("class Own: pass", "own.py:Own: no class of this name that is a masking.Method"),
    ("class Other(masking.Method): pass", "own.py:Own: no class of this name"),
    ("class Own(masking.Method): pass", "scores(W, S) must be a tensor of shape (4, 6)"),
    ("class Own(masking.Magnitude):\n    def scores(self, W, S): return W.sum(0)", "shape (4, 6)"),
    ("class Own(masking.Magnitude):\n    def scores(self, W, S): return W / W", "without NaN"),
    ("class Own(masking.Movement):\n    def score_gradient(self, *_): return None",
     "score_gradient(…) must be"),
    ("class Own(masking.Magnitude):\n    def scores(self, W, S): return W * x",
     "own.py:3: NameError: name 'x'"),
    ("class Own(\n", "own.py:2: SyntaxError"),
    ("class Own(masking.Magnitude):\n    penalised = True", "it needs learned = True and ranked"),
    ("class Own(masking.SoftMovement):\n    learned = False", "it needs learned = True and ranked"),
])
def test_a_wrong_class_is_one_line(text, said, place):
    write_atomically("own.py", f"import masking\n{text}\n")
    check_refused(place.train("--method", "own.py:Own", output="new"), said)
    check_refused(place.train("--method", "gone.py:Own", output="new"), "gone.py: No such file")


# ----------------------------------------------------------------------------- later scores


def steps(method, gradients):
    W, S = torch.tensor([[1.0, -2.0]]), method.first_scores(torch.zeros(1, 2), None)
    for g in gradients:
        method.score_gradient(W, torch.tensor([g]), S, None)
    return method.scores(W, S)[0].tolist()


def test_platon_by_hand():
    # |w g|: (1, 2), then (3, 0). Ī = 0.15 (1, 2), then 0.85 Ī + 0.15 (3, 0) = (0.5775, 0.255)
    # |I − Ī|: (0.85, 1.7), (2.4225, 0.255); Ū = 0.05 (…), then 0.95 Ū + 0.05 (…)
    first = steps(platon.Platon(), [[1.0, 1.0]])
    assert first == pytest.approx([0.15 * 0.0425, 0.3 * 0.085])
    uncertain = [0.95 * 0.0425 + 0.05 * 2.4225, 0.95 * 0.085 + 0.05 * 0.255]
    assert steps(platon.Platon(), [[1.0, 1.0], [-3.0, 0.0]]) == pytest.approx(
        [0.5775 * uncertain[0], 0.255 * uncertain[1]])


def test_fisher_by_hand():
    # E[g²] = 0.01 (9, 1), then 0.99 of it + 0.01 (0, 4); times w² = (1, 4)
    assert steps(fisher.Fisher(), [[3.0, -1.0], [0.0, 2.0]]) == pytest.approx(
        [0.99 * 0.09, 4 * (0.99 * 0.01 + 0.04)])


@pytest.mark.parametrize("name", ["examples/platon.py:Platon", "examples/fisher.py:Fisher"])
def test_the_examples_are_methods_and_go_on_to_the_same_bits(name, place, change_loss):
    name = f"{masking.__file__.removesuffix('masking.py')}{name}"
    place.train("--method", name, output="whole").succeeded()
    assert read_json("whole/metrics.json")["density"] == pytest.approx(0.1, abs=1e-3)
    change_loss(25, lambda loss: loss * float("nan"))
    place.train("--method", name, output="new")
    change_loss(99, float)
    place.train("--method", name, "--resume", output="new").succeeded()
    whole, new = digests(place.folder / "whole"), digests(place.folder / "new")
    assert new["pruning.safetensors"] == whole["pruning.safetensors"]


def test_a_child_of_dense_prunes_nothing(place):
    write_atomically("own.py", "import masking\n\nclass Plain(masking.Dense):\n    pass\n")
    place.train("--method", "own.py:Plain", output="new").succeeded()
    assert read_json("new/metrics.json")["density"] == 1


# ------------------------------------------------------------------------------- an own task

PAIRS = [("a good b", "a", "Not Sure"), ("a bad c", "b .", "yes"), ("c c", "good", "No")]


def write_task(name, header, body, dev=None):
    write_atomically(f"data/{name}/train.tsv", f"{header}\n{tsv(*body)}")
    write_atomically(f"data/{name}/dev.tsv", f"{header}\n{tsv(*(dev or body[:60]))}")


def test_own_classes(place):
    write_task("mine", "sentence1\tsentence2\tlabel", PAIRS * 170)
    place.train("--task", "mine", "--eval-every", 15, output="new").succeeded()
    found = read_json("new/metrics.json")["metrics"]
    assert set(found) == {"accuracy", "macro_f1"}
    assert read_json("new/config.json")["id2label"] == {"0": "No", "1": "Not Sure", "2": "yes"}
    log = [json.loads(line) for line in open("new/log.jsonl")]
    assert [line["step"] for line in log if "macro_f1" in line] == [14, 29]
    place("evaluate.py", "new").succeeded()
    assert read_json("new/evaluation.json")["metrics"] == found
    shutil.rmtree("data")  # classifying needs the run alone
    printed = place("evaluate.py", "new", "--text", "a good b", "a").succeeded()
    shares = [float(x) for x in re.findall(r"(?:No|Not Sure|yes) +([\d.]+)$", printed, re.M)]
    assert len(shares) == 3 and sum(shares) == pytest.approx(1, abs=2e-4)
    (place.folder / "x.tsv").write_text("sentence1\tsentence2\na\tb\nc\tc\n")
    place("evaluate.py", "new", "--predict", "x.tsv").succeeded()
    predicted = (place.folder / "new" / "predictions-x.tsv").read_text()
    assert len(re.findall(r"^\d\t(No|Not Sure|yes)$", predicted, re.M)) == 2


def test_own_scores_of_any_range_are_learned_alike(place):
    """In other units the same model gives nearly the same scores; so does its student."""
    said = {}
    for unit, first in ((1, 0), (1000, 2000), (1e-5, 0)):
        body = [("a good b", f"{first + 7 * unit:g}"), ("a bad c", f"{first + unit:g}")] * 30
        write_task("rated", "sentence\tscore", body)
        place.train("--task", "rated", "--method", "dense", "--overwrite",
                    output="teacher").succeeded()
        place.train("--task", "rated", "--teacher", "teacher", "--overwrite",
                    output="new").succeeded()
        assert read_json("new/metrics.json")["metrics"]["pearson"] > 90
        write_atomically("x.tsv", "sentence\na good b\na bad c\n")
        for run in ("teacher", "new"):
            place("evaluate.py", run, "--predict", "x.tsv").succeeded()
            lines = (place.folder / run / "predictions-x.tsv").read_text().split()[3::2]
            said.setdefault(run, []).append([(float(x) - first) / unit for x in lines])
    for of_run in said.values():
        assert of_run[1] == pytest.approx(of_run[0], abs=0.05)
        assert of_run[2] == pytest.approx(of_run[0], abs=0.05)
    assert re.search(r"score +-?\d", place("evaluate.py", "new", "--text", "a b").succeeded())
    place.train("--task", "rated", "--method", "dense", "--model", "teacher", "--lr", 1e-9,
                output="again").succeeded()  # a head that is there stays as it is
    place("evaluate.py", "again", "--predict", "x.tsv").succeeded()
    again = (place.folder / "again" / "predictions-x.tsv").read_text().split()[3::2]
    assert [float(x) / 1e-5 for x in again] == pytest.approx(said["teacher"][2], abs=1e-3)


def test_scores_that_are_all_alike(place):
    write_task("flat", "sentence\tscore", [("a b", "3"), ("b", "3")] * 20)
    place.train("--task", "flat", "--method", "dense", output="new").succeeded()


@pytest.mark.parametrize("header, body, dev, said", [
    ("sentence1\tsentence2\tlabel", PAIRS, [("a", "b", "maybe")],
     "dev.tsv:2: label 'maybe' is none of No, Not Sure, yes"),
    ("sentence1\tsentence2\tlabel", PAIRS[:1], PAIRS, "but has Not Sure"),
    ("text\tlabel", [("a", "b"), ("a", "c")], [("a", "b")], "no column 'sentence1'"),
    ("label\tsentence", [("x", "a"), ("y", "a\tb")], [("x", "a")],
     "train.tsv:3: 3 fields where 2 are expected"),
])
def test_what_is_wrong_with_an_own_task_is_said(header, body, dev, said, place):
    write_task("mine", header, body, dev)
    check_refused(place.train("--task", "mine", output="new"), said)


def test_macro_f1_by_hand():
    task = data.own_task("mine", ["sentence"], list("abc"))
    p, y = np.array([0, 1, 1, 1]), np.array([0, 0, 1, 2])  # F1 of 2/3, 1/2 and 0
    assert task.metrics(p, y) == pytest.approx({"accuracy": 50, "macro_f1": 100 * 7 / 18})


def test_the_dense_run_is_shown_beside_a_pruned_one(place):
    place.train("--method", "dense", output="runs/dense").succeeded()
    dense = read_json("runs/dense/metrics.json")["metrics"]["accuracy"]
    printed = place.train(output="runs/pruned").succeeded()
    assert f"% of dense, {dense:.1f}" in printed and re.search("density +9.985 %", printed)
    assert "% of dense" not in place.train("--seed", 1, output="runs/other").succeeded()
    assert re.search(r"step 40/40 .* steps a second · 0:00:00 left", printed)


# ------------------------------------------------------------------------------ other models


def random_model(name, **change):
    import transformers  # slow

    torch.manual_seed(0)
    small = {"vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 64, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64,
             "embedding_size": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
    config = getattr(transformers, f"{name}Config")(**small | change)
    return getattr(transformers, f"{name}ForSequenceClassification")(config)


@pytest.mark.parametrize("name", ["Bert", "Roberta", "DistilBert", "Electra"])
def test_matrices_of_transformers_models(name):
    shapes = [tuple(W.shape) for W in masking.encoder_matrices(random_model(name)).values()]
    assert shapes == ([(32, 32)] * 4 + [(64, 32), (32, 64)]) * 2


def test_other_models_need_a_pattern():
    model = random_model("GPT2", pad_token_id=0)
    with pytest.raises(UserError, match="no matrix to prune"):
        masking.encoder_matrices(model)
    found = masking.encoder_matrices(model, r"\.h\.\d+\.(attn|mlp)\.c_\w+\.weight$")
    shapes = [tuple(W.shape) for W in found.values()]
    assert shapes == [(32, 96), (32, 32), (32, 128), (128, 32)] * 2


def fine_prune(model, batches, pattern=masking.ENCODER, T=200):
    """The loop that PAPER.md shows."""
    matrices = masking.encoder_matrices(model, pattern)
    schedule = masking.Schedule(T, t_i=40, t_f=20)
    pruner = masking.Pruner(matrices, masking.Movement(), 0.1, schedule)
    pruned = {id(weight) for weight in matrices.values()}
    others = [p for p in model.parameters() if id(p) not in pruned]
    optimizer = torch.optim.AdamW([{"params": pruner.weights() + others, "lr": 1e-4},
                                   {"params": pruner.scores(), "lr": 1e-2}], weight_decay=0.0)
    for t, batch in zip(range(T), batches):
        pruner.set_masks(t)
        model(**batch).loss.backward()
        pruner.set_gradients(t)
        optimizer.step()
        optimizer.zero_grad()
    return pruner


@pytest.mark.parametrize("name", ["Roberta", "GPT2", "real"])
def test_a_loop_with_a_model_of_transformers(name, tmp_path, request):
    model = random_model(name.replace("real", "Bert"), pad_token_id=0)
    if name == "real":
        model = type(model).from_pretrained(request.getfixturevalue("real_model"))
        model.bert.embeddings.requires_grad_(False)  # half of the time
    pattern = r"\.h\.\d+\.(attn|mlp)\.c_" if name == "GPT2" else masking.ENCODER
    batch = {"input_ids": torch.randint(2, 30, (4, 8)), "labels": torch.arange(4) % 2}
    before = model.get_parameter([*dict(model.named_parameters())][-1]).clone()
    pruner = fine_prune(model, itertools.repeat(batch), pattern)
    trained = [m.M.clone() for m in pruner.matrices]
    pruner.set_masks(200, training=False)
    for m, M in zip(pruner.matrices, trained):
        assert int(m.M.sum()) == round(0.1 * m.M.numel())
        assert not m.weight[~m.M].any() and (m.M ^ M).float().mean() < 0.05
    assert not torch.equal(before, [*model.parameters()][-1])  # what is not pruned learned, too
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert all(map(torch.equal, again.parameters(), model.parameters()))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_foreign_classifier_predicts_what_transformers_does(kind, place):
    model = random_model("Bert", vocab_size=len(WORDS), initializer_range=0.5).eval()
    model.save_pretrained("other")
    if kind == "bin":
        torch.save(model.state_dict(), "other/pytorch_model.bin")
        (place.folder / "other" / "model.safetensors").unlink()
    shutil.copy("model/vocab.txt", "other")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS[5:], n)) for n in rng.integers(1, 12, 40)]
    write_atomically("x.tsv", tsv(("sentence",), *[(text,) for text in texts]))
    place("evaluate.py", "other", "--task", "sst2", "--data", "data", "--predict",
          "x.tsv").succeeded()
    ids = [[2, *(WORDS.index(word) for word in text.split()), 3] for text in texts]
    with torch.no_grad():
        theirs = [int(model(torch.tensor([row])).logits.argmax()) for row in ids]
    lines = (place.folder / "other" / "predictions-x.tsv").read_text().splitlines()[1:]
    assert lines == [f"{i}\t{c}" for i, c in enumerate(theirs)] and len(set(theirs)) == 2


# --------------------------------------------------------------------------- the model card


def test_the_hub_reads_the_model_card_and_its_lines_load_the_model(place):
    from huggingface_hub import ModelCard

    place("export.py", "run").succeeded()
    card = ModelCard.load("run/export/README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-classification"
    metrics = read_json("run/metrics.json")
    assert f"{metrics['nonzero_parameters']:,} of the 8,192" in card.text
    assert f"| accuracy | {metrics['metrics']['accuracy']:.2f} |" in card.text
    [lines] = re.findall("```python\n(.*?)```", card.text, re.S)
    made = {}
    exec(lines.replace("FOLDER", "run/export"), made)
    assert "BertForSequenceClassification" in type(made["model"]).__name__
