"""The README.md of an exported model, with the front matter that the Hugging Face Hub reads."""

from huggingface_hub import ModelCardData

SETTINGS = ("task", "method", "keep", "penalty", "data", "model", "teacher", "steps", "lr", "seed")


def card(run: dict, metrics: dict, architecture: str, left: int, entries: int) -> str:
    """`run`, `metrics`: run.json and metrics.json; `left` of the matrices' `entries` are not 0."""
    span = architecture == "BertForQuestionAnswering"
    auto = architecture.replace("Bert", "AutoModel")
    front = ModelCardData(library_name="transformers", tags=["movement-pruning", "pruning"],
                          pipeline_tag="question-answering" if span else "text-classification")
    run = dict.fromkeys(SETTINGS) | run
    words = " ".join(f"--{name} {run[name]}" for name in SETTINGS if run[name] is not None)
    rows = "".join(f"| {name} | {value:.2f} |\n"
                   for name, value in metrics.get("metrics", {}).items())
    return f"""---
{front.to_yaml()}
---

# {architecture} for {run["task"]}, {100 * left / entries:.3g} % of its encoder left

Fine-pruned with {run["method"]}, as in *Movement Pruning: Adaptive Sparsity by Fine-Tuning* (Sanh,
Wolf, Rush 2020, arXiv 2005.07683), from {run["model"]}, on {run["data"]}:

    python train.py {words}

(run.json has all other settings.)

Density: {left:,} of the {entries:,} weights in the encoder's matrices are not zero. Embeddings,
biases, LayerNorms, pooler and head are whole.

| metric, in per cent | on {metrics.get("eval_rows", "no")} evaluation rows |
|---|---|
{rows}
```python
from transformers import {auto}, AutoTokenizer
model = {auto}.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```
"""
