"""Is a pruned model faster? Its matrices in PyTorch's CSR layout against dense ones.

    python -m tools.sparse                     both sizes of model, a quarter of an hour on one core
    python -m tools.sparse --quick --csv FILE  MiniLM's size at two densities, under a minute

CSR keeps the non-zero weights row by row, each with its column. A product with it skips the
zeros, but reads a weight's place along with the weight, so it wins only where most are zero.
On the CPU it is computed by MKL, in float32 alone.

Shapes: B batch, T tokens, N = B·T, n inputs and m outputs of a matrix.
"""

import copy
import statistics
import time
import warnings
from pathlib import Path

import torch
from torch import nn

import bert
import masking
from support import cli
from support.files import check_writable, run_main
from support.origin import origin
from tools import rows

BREAK_EVEN = 0.15  # density above which a CSR product is no longer clearly the faster
PIECE = 128  # rows of x at a time, few enough for the processor's cache
MODELS = {"MiniLM": bert.Config(hidden_size=384, num_hidden_layers=6, intermediate_size=1536),
          "BERT-base": bert.Config()}
DENSITIES = (0.5, 0.1, 0.03, 0.01)


class SparseLinear(nn.Module):
    """y = W x + b with W in CSR. For inference in float32; W gets no gradient."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "CSR is in beta"
            self.register_buffer("weight", linear.weight.detach().to_sparse_csr())
        self.bias = linear.bias

    def forward(self, x):  # (..., n)
        rows = x.flatten(0, -2)  # (N, n)
        y = rows.new_empty(len(rows), len(self.bias))  # (N, m)
        for at in range(0, len(rows), PIECE):
            piece = slice(at, at + PIECE)
            # addmm on xᵀ reaches MKL directly; F.linear takes several times as long
            y[piece] = torch.addmm(self.bias[:, None], self.weight, rows[piece].t()).t()
        return y.unflatten(0, x.shape[:-1])  # (..., m)


def sparsify(model: nn.Module, most: float = BREAK_EVEN) -> int:
    """Replace, in place, the encoder's linear layers of density `most` or less → how many."""
    replaced = 0
    for name, weight in masking.encoder_matrices(model).items():
        if torch.count_nonzero(weight) <= most * weight.numel():
            layer, _, part = name.removesuffix(".weight").rpartition(".")
            setattr(model.get_submodule(layer), part,
                    SparseLinear(model.get_submodule(f"{layer}.{part}")))
            replaced += 1
    return replaced


# ----------------------------------------------------------------------------- measurement


def prune_at_random(model: nn.Module, density: float) -> None:
    for weight in masking.encoder_matrices(model).values():
        weight.data *= torch.rand_like(weight) < density


def paired(runs: dict, repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, all taking turns, so that what slows the machine slows them alike."""
    seconds = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if turn:  # the first is warming up
                seconds[name].append(time.perf_counter() - began)
    return seconds


@torch.inference_mode()
def measure(name: str, config: bert.Config, batch: int, tokens: int, density: float,
            repeats: int) -> dict:
    """One row: median milliseconds of a forward pass, and how many times faster CSR is.

    Dense rivals: float32; bf16, weights converted beforehand; and bf16 by autocast, which
    converts them in every pass. The factors are medians of paired ratios.
    """
    torch.manual_seed(0)
    dense = bert.create(config, "classification").eval()
    prune_at_random(dense, density)
    half, csr = copy.deepcopy(dense).bfloat16(), copy.deepcopy(dense)
    sparsify(csr, most=1.0)
    ids = torch.randint(1, config.vocab_size, (batch, tokens))  # (B, T)
    inputs = ids, torch.ones_like(ids), torch.zeros_like(ids)

    def autocast():
        with torch.autocast("cpu", torch.bfloat16):
            dense(*inputs)

    rivals = {"dense": lambda: dense(*inputs), "bf16": lambda: half(*inputs),
              "autocast": autocast}
    seconds = paired({**rivals, "csr": lambda: csr(*inputs)}, repeats)
    row = {"model": name, "batch": batch, "tokens": tokens, "density": density,
           "threads": torch.get_num_threads(), "repeats": repeats}
    row |= {f"{run}_ms": round(1e3 * statistics.median(s), 2) for run, s in seconds.items()}
    for rival in rivals:
        ratios = [r / s for r, s in zip(seconds[rival], seconds["csr"])]
        row[f"speedup_over_{rival}"] = round(statistics.median(ratios), 3)
    row["difference"] = float((dense(*inputs) - csr(*inputs)).abs().max())
    return row


def show(row: dict) -> str:
    speed = " · ".join(f"{row[f'speedup_over_{rival}']:5.2f}× {rival}"
                       for rival in ("dense", "bf16", "autocast"))
    return (f"{row['model']:10} batch {row['batch']:2} × {row['tokens']} tokens · density "
            f"{row['density']:4.2f} · CSR {row['csr_ms']:8.1f} ms, speed {speed}")


def measure_all(quick: bool = False, report=print) -> list[dict]:
    """All rows; `report` is given each as a line of text."""
    found = []
    for name in list(MODELS)[: 1 if quick else None]:
        for batch in (1, 32):
            for density in (0.1, 0.03) if quick else DENSITIES:
                repeats = (3 if quick else 5) * (5 if batch == 1 else 1)
                found.append(measure(name, MODELS[name], batch, 128, density, repeats))
                report(show(found[-1]))
    return found


def main() -> None:
    p = cli.Parser(description=__doc__.split("\n\nCSR")[0])
    p.add_argument("--quick", action="store_true", help="MiniLM's size, densities 0.1 and 0.03")
    p.add_argument("--threads", type=cli.count, metavar="N", help="default: torch's choice")
    p.add_argument("--csv", type=Path, metavar="FILE", help="write the rows here")
    args = p.parse_args()
    if args.csv:
        check_writable(args.csv, file=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    here = origin("cpu")
    found = measure_all(args.quick, lambda line: print(line, flush=True))
    if args.csv:
        rows.write(args.csv, [row | here for row in found], found[0] | here)


if __name__ == "__main__":
    run_main(main)
