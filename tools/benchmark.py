"""What does pruning cost? Training steps side by side in one process, taking turns.

    python -m tools.benchmark --json FILE           all parts, about half an hour on two cores
    python -m tools.benchmark --parts methods       masked step over dense step, each method
    python -m tools.benchmark --quick               6 × 384 with 32 rows of 32 tokens alone
    python -m tools.benchmark --device cuda         on a GPU

Every figure is a ratio of two steps run one after the other, again and again: whatever slows the
machine slows both, and the median forgets the rest. A step is one of train.train.
"""

import multiprocessing
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import bert
import data
import masking
import train
from support import cli, origin
from support.files import check_writable, run_main, write_json
from support.parallel import choose_device, choose_precision

CLASSES = 3
SCHEDULE = masking.Schedule(1000, 100, 200)
BEGIN = 400  # on the slope of the schedule: 27 % are kept, fewer at every step


@dataclass(frozen=True)
class Size:
    """A model, and the batch that it is trained on: B rows of T tokens."""

    layers: int
    width: int
    B: int
    T: int

    def __str__(self):
        return f"{self.layers}×{self.width}, {self.B}×{self.T} tokens"

    @property
    def config(self) -> bert.Config:
        return bert.Config(hidden_size=self.width, num_hidden_layers=self.layers,
                           num_attention_heads=max(1, self.width // 64),
                           intermediate_size=4 * self.width)


QUICK = Size(6, 384, 32, 32)
SIZES = (Size(6, 384, 32, 13), QUICK, Size(6, 384, 32, 64), Size(12, 768, 16, 128))
GPU_SIZES = (Size(6, 384, 32, 128), Size(12, 768, 32, 128))
GROWTH = (Size(2, 128, 32, 64), Size(4, 128, 32, 64), Size(4, 256, 32, 64), *SIZES[2:])


def random_rows(lengths: np.ndarray, vocabulary: int) -> data.Features:
    """Rows of these lengths (rows,), of random words with random labels."""
    rng = np.random.default_rng(0)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return data.Features(rng.integers(1, vocabulary, starts[-1]).astype(np.int32), starts,
                         (lengths + 1) // 2, rng.integers(0, CLASSES, len(lengths)), 0)


# -------------------------------------------------------------------------- a step, and rivals


def now(device: str) -> float:
    if device in ("cuda", "mps"):  # which work on while Python goes ahead
        getattr(torch, device).synchronize()
    return time.perf_counter()


class Trainee:
    """A run of train.train in the middle of its pruning, taken step by step, its stages timed.

    features: rows to train on, by default one batch of `size`; model: another one than ours.
    """

    def __init__(self, size: Size, method: str, precision: str, device: str,
                 model: nn.Module | None = None, features: data.Features | None = None):
        torch.manual_seed(0)
        model = model or bert.create(size.config, "classification", CLASSES)
        for name, p in model.named_parameters():
            p.requires_grad_("embeddings" not in name)  # frozen, as train.py has them
        self.device, self.seconds = device, {}
        if features is None:
            features = random_rows(np.full(size.B, size.T), size.config.vocab_size)
        settings = train.Settings(
            method=method, lr=3e-5, score_lr=1e-2, warmup=0.0, steps=SCHEDULE.T,
            batch_size=size.B, precision=precision, device=device)
        self.model = model.to(device)
        self.pruner = pruner = train.make_pruner(model, settings, SCHEDULE)
        for S in pruner.scores():
            S.data += 0.3 * torch.randn_like(S)  # spread out, as they are by then
        optimizer, scheduler = train.make_optimizer(model, pruner, settings)
        pruner.set_masks = self.timed("masks", pruner.set_masks)
        pruner.set_gradients = self.timed("gradients", pruner.set_gradients)
        optimizer.register_step_pre_hook(lambda *_: self.lap(-1))
        optimizer.register_step_post_hook(lambda *_: self.lap(1))
        self.steps = train.train(model, pruner, optimizer, scheduler, features, settings, BEGIN)

    def lap(self, sign: int, stage: str = "optimiser") -> None:
        """Start (−1) or stop (1) the clock of a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + sign * now(self.device)

    def timed(self, stage: str, function: Callable) -> Callable:
        def run(*args, **options):
            self.lap(-1, stage)
            function(*args, **options)
            self.lap(1, stage)
        return run

    def step(self, count: int = 1) -> dict[str, float]:
        """Take `count` steps → seconds of each stage."""
        self.seconds, began = {}, now(self.device)
        for _ in range(count):
            next(self.steps)
        total = now(self.device) - began
        return {"forward and backward": total - sum(self.seconds.values()), **self.seconds}


def their_bert(c: bert.Config) -> nn.Module:
    """transformers' BERT of the same size."""
    import transformers

    config = transformers.BertConfig(**vars(c), num_labels=CLASSES)
    config._attn_implementation = "sdpa"
    return transformers.BertForSequenceClassification(config)


class StraightThrough(torch.autograd.Function):
    """Eq. (1) forward, and the gradient passed on as it is."""

    @staticmethod
    def forward(ctx, S, v):
        return masking.top_v_by_sorting([S], v)[0].to(S)

    @staticmethod
    def backward(ctx, dL_dM):
        return dL_dM, None


class MaskedLinear(nn.Linear):
    """Movement pruning as the original code does it: sorted in every forward pass, W ⊙ M inside
    the graph. A dense run of train.py trains its scores along with the weights."""

    def forward(self, x):
        M = StraightThrough.apply(self.S, SCHEDULE.keep(BEGIN, 0.1))
        return F.linear(x, self.weight * M, self.bias)


def as_the_original(c: bert.Config) -> nn.Module:
    model = bert.create(c, "classification", CLASSES)
    for name in masking.encoder_matrices(model):
        linear = model.get_submodule(name.removesuffix(".weight"))
        linear.__class__ = MaskedLinear
        linear.S = nn.Parameter(0.3 * torch.randn_like(linear.weight))
    return model


# ------------------------------------------------------------------------------- two in turn


def in_turn(runs: dict[str, Callable], rounds: int, warm: int = 1) -> dict[str, list]:
    """What each run returns, round by round, all taking turns; the first `warm` rounds are left
    out. What slows the machine slows them all alike."""
    results = {name: [] for name in runs}
    for turn in range(warm + rounds):
        for name, run in list(runs.items())[:: 1 if turn % 2 else -1]:
            result = run()
            if turn >= warm:
                results[name].append(result)
    return results


def compare(part: str, name: str, base: Callable, ours: Callable, rounds: int, tokens: int,
            warm: int = 3) -> dict:
    """A row: `ours` against `base`, functions that work through `tokens` tokens and return the
    seconds of each of their stages."""
    stages = in_turn({"base": base, "ours": ours}, rounds, warm)
    totals = {run: [sum(one.values()) for one in stages[run]] for run in stages}
    ratios = [ours / base for base, ours in zip(totals["base"], totals["ours"])]
    median_ms = {run: 1e3 * statistics.median(totals[run]) for run in totals}
    return {"part": part, "name": name, "ratio": statistics.median(ratios), "low": min(ratios),
            "high": max(ratios), "rounds": rounds,
            "tokens_per_second": 1e3 * tokens / median_ms["ours"],
            "base_ms": median_ms["base"], "ms": median_ms["ours"],
            "stages": {stage: 1e3 * statistics.median(one[stage] for one in stages["ours"])
                       for stage in stages["ours"][0]}}


@dataclass
class Bench:
    """The parts of the benchmark; each yields rows, or needs a package that may not be there."""

    device: str
    sizes: tuple[Size, ...]
    rounds: int

    def precision(self, size: Size) -> str:
        return choose_precision("auto", self.device, size.width)[0]

    def versus(self, part: str, name: str, size: Size, base: dict, ours: dict) -> dict:
        """Two kinds of Trainee on the same batch; base, ours: how they differ from dense."""
        common = {"method": "dense", "precision": self.precision(size), "device": self.device}
        a, b = (Trainee(size, **common | options) for options in (base, ours))
        rounds = max(3, self.rounds // 3) if size.width > 512 else self.rounds
        row = compare(part, name, a.step, b.step, rounds, size.B * size.T)
        return row | {"size": str(size), "precision": common["precision"]}

    def methods(self):
        """masked step / dense step, both ours"""
        for size in self.sizes:
            for method in masking.METHODS:
                if method != "dense":
                    yield self.versus("methods", method, size, {}, {"method": method})

    def theirs(self):
        """our step / transformers' dense step"""
        for size in self.sizes:
            for method in ("dense", "movement"):
                model = their_bert(size.config)
                model.register_forward_hook(lambda *call: call[-1].logits)  # as ours returns them
                yield self.versus("theirs", method, size, {"model": model}, {"method": method})

    def original(self):
        """our movement step / one as the original code does it, on our model"""
        for size in self.sizes[1:] or self.sizes:
            yield self.versus("original", "movement", size,
                              {"model": as_the_original(size.config)}, {"method": "movement"})

    def growth(self):
        """movement step / dense step, both ours, over sizes"""
        for size in GROWTH:
            yield self.versus("growth", "movement", size, {}, {"method": "movement"})

    def trainer(self):
        """an epoch of movement on rows as long as SST-2's / a dense one by transformers' Trainer"""
        size, rows = QUICK, 2048
        lengths = np.exp(np.random.default_rng(0).normal(2.4, 0.55, rows)).astype(int).clip(4, 66)
        features, precision = random_rows(lengths, size.config.vocab_size), self.precision(size)
        ours = Trainee(size, "movement", precision, self.device, features=features)
        theirs = their_bert(size.config)
        theirs.bert.embeddings.requires_grad_(False)
        row = compare("trainer", "an epoch",
                      lambda: their_epoch(theirs, features, size, precision),
                      lambda: ours.step(-(-rows // size.B)), 7, int(lengths.sum()), warm=1)
        yield row | {"size": f"{size.layers}×{size.width}, {rows:,} rows", "precision": precision}

    def memory(self):
        """peak memory of a few steps, each in a process of its own / that of dense"""
        for size in self.sizes[-2:]:
            dense = None
            for method in masking.METHODS:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    peak = pool.submit(peak_memory, size, method, self.precision(size),
                                       self.device).result()
                dense = dense or peak
                yield {"part": "memory", "name": method, "size": str(size), "bytes": peak,
                       "ratio": peak / dense}


# memory first: a new process's peak starts from what this one held when it was made
PARTS = ("memory", "methods", "theirs", "original", "growth", "trainer")


def their_epoch(model, features, size: Size, precision: str) -> dict[str, float]:
    """transformers' Trainer at its best: rows of like length together, padded no further than the
    longest of a batch (by our collate, which costs it next to nothing), fused AdamW."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    texts = np.split(features.ids, features.starts[1:-1])
    rows = [{"input_ids": ids.tolist(), "index": i} for i, ids in enumerate(texts)]
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch, num_train_epochs=1, per_device_train_batch_size=size.B, learning_rate=3e-5,
            train_sampling_strategy="group_by_length", optim="adamw_torch_fused",
            bf16=precision == "bf16", use_cpu=not torch.cuda.is_available(), save_strategy="no",
            logging_strategy="no", report_to="none", disable_tqdm=True, remove_unused_columns=False)
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=lambda batch:
                          data.collate(features, np.array([row["index"] for row in batch])))
        trainer.remove_callback(PrinterCallback)
        return {"epoch": trainer.train().metrics["train_runtime"]}  # by its own clock


def peak_memory(size: Size, method: str, precision: str, device: str) -> int:
    """Most bytes held at once by this process, or on its GPU, over three steps."""
    Trainee(size, method, precision, device).step(3)
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


# ------------------------------------------------------------------------------ the command


def show(row: dict) -> str:
    head = f"{row['name']:14} {row['size']:22}"
    if "bytes" in row:
        return f"{head} {row['bytes'] / 2**20:8,.0f} MB  {row['ratio']:6.3f}"
    stages = " ".join(f"{stage} {ms:.1f}" for stage, ms in row["stages"].items())
    return (f"{head} {row['ms']:8.1f} ms  {row['ratio']:6.3f} ({row['low']:.3f}–{row['high']:.3f}) "
            f"{row['tokens_per_second']:8,.0f} tokens/s  {stages}")


def measure(bench: Bench, parts) -> dict:
    """Measure and print these parts → their rows, and why parts were skipped."""
    found, skipped = [], {}
    for part in (part for part in PARTS if part in parts):
        run = getattr(bench, part)
        print(f"\n{part}: {run.__doc__}", flush=True)
        try:
            for row in run():
                print(show(row), flush=True)
                found.append(row)
        except ImportError as error:
            skipped[part] = " ".join(str(error).split())
            print(f"left out: {skipped[part]}")
    return {"rows": found, "skipped": skipped}


def parse(p: cli.Parser, output: str) -> Namespace:
    """A benchmark's command line, with the flag `output` for a file; sets the number of threads."""
    p.add_argument("--quick", action="store_true", help="the smallest sizes, under two minutes")
    p.add_argument("--threads", type=cli.count, metavar="N", help="default: torch's choice")
    p.add_argument(output, dest="output", type=Path, metavar="FILE", help="write all figures here")
    args = p.parse_args()
    if args.output:
        check_writable(args.output, file=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def main() -> None:
    p = cli.Parser(prog="python -m tools.benchmark", description=__doc__)
    p.add_argument("--parts", metavar="NAMES", help=f"of {','.join(PARTS)} (default all)")
    p.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="cpu",
                   metavar="NAME", help="cpu, cuda, mps, or auto, the fastest there is")
    args = parse(p, "--json")
    parts = PARTS[1:4] if args.quick else PARTS
    if args.parts is not None:
        parts = args.parts.split(",")
    for part in parts:
        if part not in PARTS:
            p.error(f"--parts {part} is not known{cli.nearest(part, PARTS)}")
    device = choose_device(args.device)
    sizes = (QUICK,) if args.quick else GPU_SIZES if device == "cuda" else SIZES
    bench = Bench(device, sizes, rounds=9 if args.quick else 15)
    result = {**origin.origin(device), "device": device, "precision": bench.precision(QUICK)}
    print(f"{result['machine']} · {result['threads']} threads · torch {result['torch']} · "
          f"{result['precision']}\nmilliseconds of each stage at the end of each line", flush=True)
    result |= measure(bench, parts)
    shown = str(QUICK if QUICK in sizes else sizes[-1])
    for key, part in (("ratios", "methods"), ("theirs", "theirs")):
        result[key] = {row["name"]: row["ratio"] for row in result["rows"]
                       if row["part"] == part and row["size"] == shown}
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    run_main(main)
