"""What does pruning cost? Training steps side by side in one process, taking turns.

    python -m tools.benchmark --json FILE           all parts, a quarter of an hour on two cores
    python -m tools.benchmark --parts methods       masked step over dense step, each method
    python -m tools.benchmark --quick               a tiny model, under 20 seconds

Every figure is a ratio of two steps run one after the other, again and again: what slows the
machine slows both, and the median forgets the rest. A step is what train.py does in one: refresh
the masks, forward, backward, the masks' part of the backward pass, clip, optimiser and schedule.
"""

import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import bert
import data
import masking
import train
from settings import choose_device, choose_precision
from support import checkpoints as runs
from support import cli
from support.files import check_writable, run_main, write_json
from support.origin import machine
from tools import sparse

STAGES = ("refresh", "forward", "backward", "masks", "clip", "optimiser")
METHODS = [name for name in masking.METHODS if name != "dense"]
CLASSES, LONGEST = 3, 128


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

    def batch(self, device: str) -> dict[str, torch.Tensor]:
        """Random words without padding."""
        features = random_rows(np.full(self.B, self.T), self.config.vocab_size)
        return data.collate(features, np.arange(self.B), device)


SMALL, BASE = Size(6, 384, 32, 64), Size(12, 768, 16, 128)
GROWTH = [Size(2, 128, 32, 64), Size(4, 128, 32, 64), Size(4, 256, 32, 64), SMALL, BASE]
TINY = Size(2, 64, 8, 16)


def random_rows(lengths: np.ndarray, vocabulary: int) -> data.Features:
    """Rows of these lengths, of random words with random labels."""
    rng = np.random.default_rng(0)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return data.Features(rng.integers(1, vocabulary, starts[-1]).astype(np.int32), starts,
                         (lengths + 1) // 2, rng.integers(0, CLASSES, len(lengths)), 0)


# --------------------------------------------------------------------------------- one step


class Trainee:
    """A model in the middle of its pruning, trained step by step, each stage timed."""

    def __init__(self, size: Size, method: str, precision: str, device: str, model=None,
                 compiled: bool = False):
        torch.manual_seed(0)
        model = model or bert.create(size.config, "classification", CLASSES)
        for name, p in model.named_parameters():
            p.requires_grad_("embeddings" not in name)  # frozen, as train.py has them
        model = model.to(device).train()
        self.t, T = 400, 1000  # on the slope of the schedule: 27 % are kept, fewer every step
        schedule = masking.Schedule(T, 100, 200)
        matrices = {} if method == "dense" else masking.encoder_matrices(model)
        self.pruner = masking.Pruner(matrices, method, 0.1, schedule)
        for S in self.pruner.scores():
            S.data += 0.3 * torch.randn_like(S)  # apart, as they are by then
        s = {"freeze": None, "lr": 3e-5, "score_lr": 1e-2, "device": device}
        self.optimizer = train.make_optimizer(model, self.pruner, s)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda t: train.rate(self.t, T, 0.1))
        self.learned = [p for g in self.optimizer.param_groups for p in g["params"]]
        self.net = torch.compile(model) if compiled else model
        self.precision, self.device = precision, device

    def step(self, batch) -> dict[str, float]:
        """Seconds of each stage."""
        times = [now(self.device)]

        def lap():
            times.append(now(self.device))

        self.pruner.refresh(self.t)
        lap()
        logits = train.forward(self.net, batch, self.precision)
        loss = train.task_loss(logits, batch["labels"], batch["attention_mask"].bool())
        lap()
        loss.backward()
        loss.item()
        lap()
        self.pruner.backward(self.t, self.scheduler.get_last_lr()[-1])
        lap()
        nn.utils.clip_grad_norm_(self.learned, 1.0)
        lap()
        self.optimizer.step()
        self.t += 1
        self.scheduler.step()
        self.optimizer.zero_grad()
        lap()
        return dict(zip(STAGES, np.diff(times).tolist()))

    def epoch(self, batches) -> dict[str, float]:
        steps = [self.step(batch) for batch in batches]
        return {stage: sum(step[stage] for step in steps) for stage in STAGES}


def now(device: str) -> float:
    if device in ("cuda", "mps"):  # which work on while Python goes ahead
        getattr(torch, device).synchronize()
    return time.perf_counter()


class Theirs(nn.Module):
    """transformers' BERT of the same size, called as ours is."""

    def __init__(self, c: bert.Config):
        super().__init__()
        import transformers

        config = transformers.BertConfig(**vars(c), num_labels=CLASSES)
        config._attn_implementation = "sdpa"
        self.model = transformers.BertForSequenceClassification(config)

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.model(input_ids=input_ids, attention_mask=attention_mask,
                          token_type_ids=token_type_ids).logits


# --------------------------------------------------------------------------- two in turn


def compare(part: str, name: str, base, own, rounds: int, tokens: int, warm: int = 3) -> dict:
    """A row: `own` against `base`, functions that do `tokens` tokens of work and say how long
    each stage took; the first `warm` rounds are not counted."""
    found = {base: [], own: []}
    for i in range(warm + rounds):
        for run in (base, own) if i % 2 else (own, base):
            stages = run()
            if i >= warm:
                found[run].append(stages)
    totals = {run: [sum(stages.values()) for stages in found[run]] for run in found}
    ratios = [b / a for a, b in zip(totals[base], totals[own])]
    medians = {run: {stage: 1e3 * statistics.median(x[stage] for x in found[run])
                     for stage in found[base][0]} for run in found}
    return {"part": part, "name": name, "ratio": statistics.median(ratios), "low": min(ratios),
            "high": max(ratios), "rounds": rounds, "tokens_per_second": tokens / statistics.median(
                totals[own]), "base_ms": 1e3 * statistics.median(totals[base]),
            "ms": 1e3 * statistics.median(totals[own]), "base_stages": medians[base],
            "stages": medians[own]}


class Bench:
    """What all parts share: machine, precision, whether to be quick."""

    def __init__(self, device: str, quick: bool):
        self.device, self.quick, self.skipped = device, quick, {}
        self.small = TINY if quick else SMALL

    def precision(self, size: Size) -> str:
        return choose_precision("auto", self.device, size.width)[0]

    def rounds(self, size: Size) -> int:
        return 2 if self.quick else 3 if size is BASE else 9

    def versus(self, part, name, size: Size, base: dict, own: dict) -> dict:
        """Two kinds of Trainee on the same batch."""
        common = {"method": "dense", "precision": self.precision(size), "device": self.device}
        batch = size.batch(self.device)
        a, b = (Trainee(size, **common | options) for options in (base, own))
        row = compare(part, name, lambda: a.step(batch), lambda: b.step(batch),
                      self.rounds(size), size.B * size.T)
        return row | {"size": str(size), "precision": b.precision}

    def methods(self):
        """masked step / dense step"""
        for size in (self.small,) if self.quick else (SMALL, BASE):
            for method in METHODS:
                yield self.versus("methods", method, size, {}, {"method": method})

    def theirs(self):
        """our dense step / that of transformers"""
        if find_spec("transformers") is None:
            self.skipped["theirs"] = "transformers is not installed"
            return
        for size in (self.small,) if self.quick else (SMALL, BASE):
            yield self.versus("theirs", "dense", size, {"model": Theirs(size.config)}, {})

    def options(self):
        """movement step with an option / without"""
        size, movement = self.small, {"method": "movement"}
        yield self.versus("options", "bf16 / fp32", size, movement | {"precision": "fp32"},
                          movement | {"precision": "bf16"})
        if self.quick:
            self.skipped["compile"] = "takes too long for --quick"
            return
        try:
            yield self.versus("options", "compiled / not", size, movement,
                              movement | {"compiled": True})
        except Exception as error:  # many kinds: no compiler, an unsupported Python, …
            self.skipped["compile"] = str(error).strip().splitlines()[0][:200]

    def growth(self):
        """movement step / dense step, over sizes"""
        for size in (TINY,) if self.quick else GROWTH:
            yield self.versus("growth", "movement", size, {}, {"method": "movement"})

    def buckets(self):
        """an epoch of movement on rows as long as MNLI's, in buckets of like length / another"""
        size, device = self.small, self.device
        n = 64 if self.quick else 512
        lengths = np.exp(np.random.default_rng(0).normal(3.55, 0.45, n))
        features = random_rows(lengths.astype(int).clip(6, LONGEST), size.config.vocab_size)
        order = list(data.batches(features, size.B, 0, 0))
        batches = [data.collate(features, index, device) for index in order]
        padded = [{k: pad(x) for k, x in batch.items()} for batch in batches]
        real = int(features.lengths.sum())
        used = sum(batch["input_ids"].numel() for batch in batches)
        own = Trainee(size, "movement", self.precision(size), device)
        rivals = {f"padded to {LONGEST}": (own, padded),
                  f"padded to {LONGEST}, fp32": (Trainee(size, "movement", "fp32", device), padded)}
        if find_spec("transformers"):
            theirs = Trainee(size, "dense", self.precision(size), device, Theirs(size.config))
            rivals["transformers, dense, bucketed"] = (theirs, batches)
        for name, (rival, its) in rivals.items():
            row = compare("buckets", name, lambda r=rival, b=its: r.epoch(b),
                          lambda: own.epoch(batches), 1 if self.quick else 3, real, warm=1)
            yield row | {"size": str(size), "precision": own.precision,
                         "padding": 1 - real / used}

    def trainer(self):
        """an epoch of movement on rows as long as SST-2's / a dense one by transformers' Trainer"""
        if find_spec("transformers") is None or find_spec("accelerate") is None:
            self.skipped["trainer"] = "transformers or accelerate is not installed"
            return
        size, n = self.small, 64 if self.quick else 2048
        lengths = np.exp(np.random.default_rng(0).normal(2.4, 0.55, n)).astype(int).clip(4, 66)
        features, precision = random_rows(lengths, size.config.vocab_size), self.precision(size)
        own = Trainee(size, "movement", precision, self.device)
        theirs = Theirs(size.config).model
        theirs.bert.embeddings.requires_grad_(False)

        def our_epoch():
            began = now(self.device)
            own.epoch(data.collate(features, index, self.device)
                      for index in data.batches(features, size.B, 0, 0))
            return {"epoch": now(self.device) - began}

        row = compare("trainer", "an epoch", lambda: their_epoch(theirs, features, size, precision),
                      our_epoch, 1 if self.quick else 7, int(lengths.sum()), warm=1)
        yield row | {"size": f"{size.layers}×{size.width}, {n:,} rows", "precision": precision}

    def memory(self):
        """peak memory of a few steps, each in a process of its own / that of dense"""
        if self.device == "cpu" and find_spec("resource") is None:
            self.skipped["memory"] = "Python has no measure of it on Windows"
            return
        for size in (self.small,) if self.quick else (SMALL, BASE):
            dense = None
            for method in ("dense", "movement") if self.quick else masking.METHODS:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    peak = pool.submit(peak_memory, size, method, self.precision(size),
                                       self.device).result()
                dense = dense or peak
                yield {"part": "memory", "name": method, "size": str(size), "bytes": peak,
                       "ratio": peak / dense}


# memory first: a new process's peak starts from what this one held when it was made
PARTS = ("memory", "methods", "theirs", "options", "growth", "buckets", "trainer")


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


def pad(x: torch.Tensor) -> torch.Tensor:
    """(B, T) → (B, LONGEST); labels stay."""
    return F.pad(x, (0, LONGEST - x.shape[1])) if x.dim() == 2 else x


def peak_memory(size: Size, method: str, precision: str, device: str) -> int:
    """Most bytes held at once by this process, or on its GPU, over three steps."""
    trainee, batch = Trainee(size, method, precision, device), size.batch(device)
    for _ in range(3):
        trainee.step(batch)
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


# ------------------------------------------------------------------------------ the command


def show(row: dict) -> str:
    head = f"{row['name']:28} {row['size']:22}"
    if "bytes" in row:
        return f"{head} {row['bytes'] / 2**20:8,.0f} MB  {row['ratio']:6.3f}"
    more = " ".join(f"{stage} {own - row['base_stages'][stage]:+.1f}"
                    for stage, own in row["stages"].items())
    return (f"{head} {row['ms']:8.1f} ms  {row['ratio']:6.3f} ({row['low']:.3f}–{row['high']:.3f}) "
            f"{row['tokens_per_second']:8,.0f} tokens/s  {more}")


def main() -> None:
    p = cli.Parser(description=__doc__)
    p.add_argument("--quick", action="store_true", help="a tiny model, to see that all works")
    p.add_argument("--parts", metavar="NAMES", help=f"of {','.join(PARTS)} (default all)")
    p.add_argument("--threads", type=cli.count, metavar="N", help="default: torch's choice")
    p.add_argument("--sparse", action="store_true", help="sparse inference too, see sparse.py")
    p.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    args = p.parse_args()
    wanted = args.parts.split(",") if args.parts else PARTS
    for part in wanted:
        if part not in PARTS:
            p.error(f"--parts {part} is not known{cli.nearest(part, PARTS)}")
    if args.json:
        check_writable(args.json, file=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    bench = Bench(choose_device("auto"), args.quick)
    result = {"machine": machine(bench.device), "device": bench.device, **runs.versions(),
              "size": str(bench.small), "precision": bench.precision(bench.small), "ratios": {},
              "rows": [], "skipped": bench.skipped}
    print(f"{result['machine']} · {result['threads']} threads · torch {result['torch']} · "
          f"{result['precision']}\nmilliseconds more than the other's, stage by stage, at the end "
          "of each line", flush=True)
    for part in (part for part in PARTS if part in wanted):
        run = getattr(bench, part)
        print(f"\n{part}: {run.__doc__}", flush=True)
        for row in run():
            print(show(row), flush=True)
            result["rows"].append(row)
    result["ratios"] = {row["name"]: row["ratio"] for row in result["rows"]
                        if row["part"] == "methods" and row["size"] == result["size"]}
    for part, why in bench.skipped.items():
        print(f"{part} left out: {why}")
    if args.sparse:
        result["sparse"] = sparse.measure_all(args.quick, lambda line: print(line, flush=True))
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    run_main(main)
