"""Is a pruned model faster? Its matrices in PyTorch's CSR layout against dense ones.

    python -m tools.sparse                     both sizes of model, a quarter of an hour on one core
    python -m tools.sparse --quick --csv FILE  MiniLM's size at two densities, under two minutes

support/csr.py says what CSR is. Shapes: B batch, T tokens.
"""

import copy
import functools
import itertools
import statistics
import time

import torch
from torch import nn

import bert
import masking
from support import cli, csr
from support.files import check_table, run_main
from support.origin import origin
from tools import benchmark, rows

MODELS = {"MiniLM": bert.Config(hidden_size=384, num_hidden_layers=6, intermediate_size=1536),
          "BERT-base": bert.Config()}
DENSITIES = (0.5, 0.1, 0.03, 0.01)


# ----------------------------------------------------------------------------- measurement


def prune_at_random(model: nn.Module, density: float) -> None:
    for weight in masking.encoder_matrices(model).values():
        weight.data *= torch.rand_like(weight) < density


@torch.inference_mode()
def measure(name: str, config: bert.Config, batch: int, tokens: int, density: float,
            repeats: int) -> dict:
    """One row: median milliseconds of a forward pass, and how many times faster CSR is.

    Its dense rivals: float32, and bf16 with weights converted beforehand. The factors are medians
    of paired ratios.
    """
    torch.manual_seed(0)
    dense = bert.create(config, "classification").eval()
    prune_at_random(dense, density)
    models = {"dense": dense, "bf16": copy.deepcopy(dense).bfloat16(), "csr": copy.deepcopy(dense)}
    csr.sparsify(models["csr"], masking.encoder_matrices(models["csr"]), densest=1.0)
    ids = torch.randint(1, config.vocab_size, (batch, tokens))  # (B, T)
    inputs = ids, torch.ones_like(ids), torch.zeros_like(ids)

    def seconds_of(model):
        began = time.perf_counter()
        model(*inputs)
        return time.perf_counter() - began

    seconds = benchmark.in_turn(
        {run: functools.partial(seconds_of, model) for run, model in models.items()}, repeats)
    row = {"model": name, "batch": batch, "tokens": tokens, "density": density,
           "threads": torch.get_num_threads(), "repeats": repeats}
    row |= {f"{run}_ms": round(1e3 * statistics.median(s), 2) for run, s in seconds.items()}
    for rival in ("dense", "bf16"):
        ratios = [r / s for r, s in zip(seconds[rival], seconds["csr"])]
        row[f"speedup_over_{rival}"] = round(statistics.median(ratios), 3)
    row["difference"] = float((dense(*inputs) - models["csr"](*inputs)).abs().max())
    return row


def show(row: dict) -> str:
    return (f"{row['model']:10} batch {row['batch']:2} × {row['tokens']} tokens · density "
            f"{row['density']:4.2f} · CSR {row['csr_ms']:8.1f} ms, speed "
            f"{row['speedup_over_dense']:5.2f}× dense · {row['speedup_over_bf16']:5.2f}× bf16")


def main() -> None:
    p = cli.Parser(prog="python -m tools.sparse", description=__doc__)
    args = benchmark.parse(p, "--csv")
    if args.output:
        check_table(args.output, "csr_ms")
    models = ["MiniLM"] if args.quick else MODELS
    measured, here = [], origin("cpu")
    for name, batch, density in itertools.product(
            models, (1, 32), (0.1, 0.03) if args.quick else DENSITIES):
        repeats = (3 if args.quick else 5) * (5 if batch == 1 else 1)
        row = measure(name, MODELS[name], batch, 128, density, repeats)
        print(show(row), flush=True)
        measured.append(row | here)
    if args.output:
        rows.write(args.output, measured, measured[0])


if __name__ == "__main__":
    run_main(main)
