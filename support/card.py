"""The README.md of an exported model, with the front matter that the Hugging Face Hub reads."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

TAGS = ("movement-pruning", "pruning", "unstructured-sparsity", "bert")
SHOWN = ("task", "method", "data", "model", "teacher", "keep", "penalty", "scope", "steps",
         "batch_size", "lr", "score_lr", "max_length", "warmup", "hold", "cooldown", "seed")


def card(run: dict, metrics: dict, architecture: str, left: int, entries: int) -> str:
    """`run`, `metrics`: run.json and metrics.json; `left` of the matrices' `entries` are not 0."""
    measured = metrics.get("metrics", {})
    results = [EvalResult(task_type="text-classification", dataset_type=run["task"],
                          dataset_name=f"{run['task']} ({Path(run['data']).name})",
                          metric_type=name, metric_value=round(value, 2))
               for name, value in measured.items()]
    kind = "question-answering" if run["task"] == "squad" else "text-classification"
    front = ModelCardData(
        library_name="transformers", pipeline_tag=kind, tags=list(TAGS), eval_results=results,
        model_name=f"{run['task']}-{Path(run['method']).name}")
    words = " ".join(f"--{name.replace('_', '-')} {run[name]}" for name in SHOWN
                     if run.get(name) is not None)
    rows = "".join(f"| {name} | {value:.2f} |\n" for name, value in measured.items())
    auto = "AutoModelForQuestionAnswering" if run["task"] == "squad" else (
        "AutoModelForSequenceClassification")
    return f"""---
{front.to_yaml()}
---

# {architecture}, {100 * left / entries:.3g} % of its encoder left

Fine-pruned for {run["task"]} with {run["method"]}, as in *Movement Pruning: Adaptive Sparsity by
Fine-Tuning* (Sanh, Wolf, Rush 2020, arXiv 2005.07683).

- Start: {run["model"]}. Rows: {run["data"]}.
- Density: {left:,} of the {entries:,} weights in the encoder's matrices are not zero. Embeddings,
  biases, LayerNorms, pooler and head are whole.
- Made by `python train.py {words}`

| metric, in per cent, on {metrics.get("eval_rows", "no")} evaluation rows | |
|---|---|
{rows}
```python
from transformers import {auto}, AutoTokenizer
model = {auto}.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```
"""
