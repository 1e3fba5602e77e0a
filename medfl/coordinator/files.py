"""The files of a run folder, written so that a reader never sees half of one."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from medfl.errors import InputError, RunError
from medfl.study.model import Study
from medfl.update.vector import FloatVector, Layout


def write_text(path: Path, text: str) -> None:
    """Write whole and move into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2, default=str, allow_nan=False) + "\n")


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(value, allow_nan=False) + "\n" for value in values))


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, allow_nan=False) + "\n")


def save_model(folder: Path, layout: Layout, vector: FloatVector, study: Study) -> None:
    """`model.safetensors` (one tensor a parameter) and the `study.yaml` that builds its network."""
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    # one key only: safetensors writes several in no fixed order, and equal models should be equal files
    about = json.dumps({"study": study.name, "layout": layout.digest})
    raw = save(layout.views(vector), metadata={"medfl": about})
    temporary = folder / f".model.{os.getpid()}"
    temporary.write_bytes(raw)
    temporary.replace(folder / "model.safetensors")
    write_text(folder / "study.yaml", yaml.safe_dump(study.to_json(), sort_keys=False))


def load_model(folder: Path, layout: Layout) -> FloatVector:
    """The flat vector of a saved model; InputError when the file is not one, RunError when it fits another network."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / "model.safetensors"
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise InputError.at(path, "does not exist", "give the folder of a finished run, or its model folder") from error
    except (SafetensorError, OSError) as error:
        raise InputError.at(path, f"cannot be read: {error}", "give the folder of a finished run") from error
    try:
        return layout.pack(tensors)
    except RunError as error:
        raise InputError(*error.faults) from error
