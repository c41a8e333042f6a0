"""Where, when and with what a result was made."""

import os
import platform
import subprocess
import time
from pathlib import Path

import numpy as np
import tokenizers
import torch


def origin(device: str) -> dict:
    return {"machine": machine(device), "threads": torch.get_num_threads(),
            "python": platform.python_version(), "torch": str(torch.__version__),
            "numpy": np.__version__, "tokenizers": tokenizers.__version__,
            "git": git_version(), "date": time.strftime("%Y-%m-%d")}


def machine(device: str) -> str:
    """The processor, its number of cores, and the GPU if `device` is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor that gives no name
        cpu = platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if device.startswith("cuda") else ""
    return f"{cpu}, {os.cpu_count()} cores{gpu}"


def git_version() -> str:
    """The commit, with + if a source file differs from it; empty outside a git repository."""
    def ask(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=Path(__file__).parent.parent,
                              capture_output=True, text=True).stdout.strip()

    try:
        commit = ask("rev-parse", "--short", "HEAD")
        return commit + ("+" if ask("status", "--porcelain", "--", "*.py") else "")
    except OSError:  # git is not installed
        return ""
