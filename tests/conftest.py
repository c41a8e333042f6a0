"""Where tests find things. Real weights and rows are used where the environment names them."""

import os
import sys
from pathlib import Path

import pytest

# models are tiny here: a second thread only gets in the way
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # python -m tools.sweep, from any folder


def argv(program, *words) -> list[str]:
    """The command that runs train.py, or a module such as tools.sweep, in a process of its own."""
    script = [str(ROOT / program)] if program.endswith(".py") else ["-m", program]
    return [sys.executable, *script, *map(str, words)]


def named_by(variable: str) -> Path:
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set")
    return Path(os.environ[variable])


from tiny import cache, change_loss, command, place, ready, sample_run  # noqa: E402,F401


@pytest.fixture(scope="session")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="session")
def real_model() -> Path:
    """A Hugging Face folder with a real BERT."""
    return named_by("MOVEMENT_TEST_MODEL")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder with GLUE's files."""
    return named_by("MOVEMENT_TEST_DATA")
