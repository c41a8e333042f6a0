"""Device, precision, and one run on several processes: torchrun --nproc-per-node N train.py …

Every process holds the whole model and works through its share of each batch. PyTorch's
DistributedDataParallel averages the gradients dL/dW', so weights, scores and masks stay the same
everywhere. Without torchrun there is one process, and none of this does anything.
"""

import os
from contextlib import nullcontext

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from support.files import RunError, UserError

# oneDNN keeps a program for each shape it has met: with batches of all lengths, hundreds. It reads
# this at its first product, so it must be set before there is any model.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
# Adam's moments of pruned weights decay to denormal numbers, on which a CPU is slow. Threads take
# this setting from the thread that starts them, so it too must come first.
torch.set_flush_denormal(True)

CHECK_EVERY = 100  # steps

# ---------------------------------------------------------------------- device and precision


def choose_device(wanted: str) -> str:
    """auto, cpu, cuda or mps → cpu, cuda or mps; UserError where the machine has no such device."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
                 "cpu": True}
    if wanted == "auto":
        available["mps"] &= world() == 1  # gloo cannot average its tensors
        return next(device for device, there in available.items() if there)
    if not available[wanted]:
        raise UserError(f"--device {wanted}: this machine (or this build of torch) has none")
    return wanted


def choose_precision(wanted: str, device: str, width: int) -> tuple[str, str]:
    """→ (fp32 or bf16, why). Narrow matrices lose more to conversions than bf16 saves."""
    if wanted != "auto":
        return wanted, "as asked"
    if device.startswith("cuda"):
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu.get_capabilities()
        fast = device == "cpu" and width >= 256 and (has.get("avx512_bf16") or has.get("amx_bf16"))
    return ("bf16", "it is fast here") if fast else ("fp32", "bf16 is no faster here")


# --------------------------------------------------------------------------------- processes


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def is_main() -> bool:
    """Is this the process that prints and writes?"""
    return rank() == 0


def start(device: str) -> str:
    """Join the other processes; → this process's device."""
    try:
        if world() == 1 and is_main():
            return device
        if device == "mps":
            raise UserError("--device mps: several processes need --device cpu, or NVIDIA GPUs")
        if device == "cuda":
            local, count = int(os.environ.get("LOCAL_RANK", rank())), torch.cuda.device_count()
            if local >= count:
                raise UserError(f"process {local} of this machine has no GPU, there are {count}; "
                                "lower --nproc-per-node")
            device = f"cuda:{local}"
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    except (ValueError, RuntimeError) as error:  # a variable is missing, or no number
        raise UserError(f"RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT: {error}; use torchrun, or "
                        "unset them") from None
    return device


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def wrap(model: torch.nn.Module) -> torch.nn.Module:
    """The model whose backward pass averages gradients over the processes."""
    return DistributedDataParallel(model) if world() > 1 else model


def averaging(model: torch.nn.Module, wanted: bool):
    """A context in which a backward pass averages gradients over the processes, or only adds them
    up: one averaging per batch is enough."""
    return nullcontext() if wanted or world() == 1 else model.no_sync()


def pieces_of(batch: np.ndarray, grad_accum: int) -> list[tuple[np.ndarray, float]]:
    """This process's share of a batch of row numbers, in pieces, each with its weight.

    The weights are such that, averaged over the processes, the sum of weight × mean loss of a
    piece is the mean loss of the whole batch. A process without a row takes one with weight 0.
    """
    rows = np.array_split(batch, world())[rank()]
    if not len(rows):
        return [(batch[-1:], 0.0)]
    count = min(grad_accum, max(1, len(batch) // world()))
    # in this order of operations, since others round differently
    factor = world() * len(rows) / len(batch)
    return [(piece, len(piece) / len(rows) * factor) for piece in np.array_split(rows, count)]


def seed_dropout(seed: int, t: int) -> None:
    """Dropout's noise at step t: each process its own, and the same after a resume."""
    torch.manual_seed(int(np.random.SeedSequence([seed, t, rank()]).generate_state(1)[0]))


def mean(value: torch.Tensor) -> torch.Tensor:
    """A number averaged over the processes."""
    if world() == 1:
        return value
    dist.all_reduce(value)
    return value / world()


def largest(value: int, t: int) -> int:
    """The largest of all processes' numbers, of which they tell each other every 10 steps; in
    between, 0."""
    return 0 if world() > 1 and t % 10 else max(from_all(value))


def check_alike(settings: dict) -> None:
    """UserError where processes differ in what decides the result."""
    first, *others = from_all(settings)
    for number, its in enumerate(others, 1):
        for name in settings:
            if its[name] != first[name]:
                raise UserError(f"process {number} has {name} {its[name]}, and process 0 "
                                f"{first[name]}; start them alike")


def check_equal(pruner, t: int) -> None:
    """Every 100 steps, cheaply: RunError unless W ⊙ M is the same on every process."""
    if world() == 1 or t % CHECK_EVERY:
        return
    sums = [float(m.weight.detach().double().sum()) for m in pruner.matrices]
    if any(its_sums != sums for its_sums in from_all(sums)):
        raise RunError(f"step {t}: the processes no longer have the same weights and masks")


def from_all(value) -> list:
    """The values of all processes, the main one's first, on each of them."""
    values = [value] * world()
    if world() > 1:
        dist.all_gather_object(values, value)
    return values
