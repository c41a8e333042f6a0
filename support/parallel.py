"""One run on several processes: torchrun --nproc-per-node N train.py …

Every process holds the whole model and works through its share of each batch; PyTorch's
DistributedDataParallel averages the gradients dL/dW', so that weights, scores and masks stay the
same everywhere. Without torchrun all of this does nothing.
"""

import os

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from support.files import RunError

CHECK_EVERY = 100  # steps


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def is_main() -> bool:
    """Is this the process that prints and writes?"""
    return rank() == 0


def start(device: str) -> str:
    """Join the other processes; → this process's device."""
    if world() == 1:
        return device
    local = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        device = f"cuda:{local % torch.cuda.device_count()}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def wrap(model: torch.nn.Module) -> torch.nn.Module:
    """The model whose backward pass averages gradients over the processes."""
    return DistributedDataParallel(model) if world() > 1 else model


def share(index: np.ndarray) -> tuple[np.ndarray, float]:
    """This process's rows of a batch, and the factor that makes the average over processes of
    factor × mean loss the mean loss of the whole batch. Without a row left it takes one at 0."""
    rows = np.array_split(index, world())[rank()]
    factor = world() * len(rows) / len(index)
    return (rows, factor) if len(rows) else (index[-1:], 0.0)


def pieces(index: np.ndarray, wanted: int) -> int:
    """In how many pieces every process works through its share of a batch: as many as wanted, if
    the smallest share has so many rows, since gradients are averaged after each."""
    return min(wanted, max(1, len(index) // world()))


def seed(seed: int, t: int) -> None:
    """Dropout's noise of step t: its own on each process, and the same after a resume."""
    torch.manual_seed(int(np.random.SeedSequence([seed, t, rank()]).generate_state(1)[0]))


def mean(value: float) -> float:
    """A number averaged over the processes."""
    if world() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    if dist.get_backend() == "nccl":
        total = total.cuda()
    dist.all_reduce(total)
    return float(total) / world()


def check_equal(pruner, t: int) -> None:
    """Now and then, cheaply: are masks and scores the same on every process?"""
    if world() == 1 or t % CHECK_EVERY:
        return
    own = [(int(torch.count_nonzero(m.M)), float(m.S.double().sum()) if m.S is not None else 0.0)
           for m in pruner.matrices if pruner.masked]
    everyone = [None] * world()
    dist.all_gather_object(everyone, own)
    for other, values in enumerate(everyone):
        if values != everyone[0]:
            raise RunError(f"step {t}: masks or scores of process {other} differ from process 0's")


def same(value):
    """The main process's value, on every process."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
