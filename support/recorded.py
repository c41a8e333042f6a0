"""What a run's folder says about the run: the settings that evaluating it depends on, checked."""

from pathlib import Path

from support.files import UserError, read_json


def is_count(value) -> bool:
    return type(value) is int and 0 < value < 10**9


def is_own_task(value) -> bool:
    return (isinstance(value, dict) and value.keys() == {"columns", "labels"}
            and value["columns"] in (["sentence"], ["sentence1", "sentence2"])
            and isinstance(value["labels"], list) and len(value["labels"]) != 1
            and all(isinstance(label, str) for label in value["labels"]))


RECORDED = {  # what is taken from a run.json, and which values train.py can have written
    "task": lambda v: isinstance(v, str) and Path(v).name == v,
    "data": lambda v: isinstance(v, str),
    "own_task": lambda v: v is None or is_own_task(v),
    "max_length": is_count, "doc_stride": is_count, "batch_size": is_count,
    "max_eval_rows": lambda v: v is None or is_count(v),
    "held_out": lambda v: v is None or (type(v) is float and 0 < v < 1),
    "precision": lambda v: v in ("auto", "fp32", "bf16")}


def settings(folder: Path, tasks: list[str]) -> dict:
    """What the run.json of a run, or of the run that a folder was exported from, says. `tasks`: the
    built-in ones."""
    for place in (folder, folder.parent):  # RUN/export belongs to RUN
        path = place / "run.json"
        if path.exists():
            known = {name: value for name, value in read_json(path).items() if name in RECORDED}
            for name, value in known.items():
                own = known.get("own_task") or name != "task"
                if not RECORDED[name](value) or not (own or value in tasks):
                    raise UserError(f"{path}: {name} is {value!r}, which train.py never writes")
            return known
    return {}
