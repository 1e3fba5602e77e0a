"""Reading study and site files: YAML and `--set` in, a validated model out, or every fault at once."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from medfl.errors import Fault, Faults, StudyError
from medfl.study.model import Site, Study
from medfl.study.rules import conflicts

M = TypeVar("M", bound=BaseModel)


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """The study of a YAML file with `key.path=value` overrides applied; StudyError with all faults."""
    raw = _read(path)
    faults = Faults()
    for override in overrides:
        _override(raw, override, faults)
    faults.raise_if_any(StudyError)
    study = _anchored(_validate(Study, raw, path.name), path.parent)
    faults.extend(conflicts(study))
    faults.raise_if_any(StudyError)
    return study


def _anchored(study: Study, folder: Path) -> Study:
    source = study.data.source
    if source.kind != "datalist" or source.path is None or source.path.is_absolute():
        return study
    source = source.model_copy(update={"path": (folder / source.path).resolve()})
    return study.model_copy(update={"data": study.data.model_copy(update={"source": source})})


def study_from_json(value: Mapping[str, Any]) -> Study:
    """The study that `Study.to_json` gave."""
    return _validate(Study, dict(value), "study")


def load_sites(folder: Path) -> list[Site]:
    """All `*.yaml` of a folder by name; StudyError names every file that is wrong, and names used twice."""
    if not folder.is_dir():
        raise StudyError.at(folder, "is not a folder of site files", "give --sites a folder with one YAML a hospital")
    faults, sites = Faults(), []
    for path in sorted(folder.glob("*.yaml")):
        try:
            sites.append(load_site_file(path))
        except StudyError as error:
            faults.extend(error.faults)
    names = [site.name for site in sites]
    for name in sorted({name for name in names if names.count(name) > 1}):
        faults.add(folder, f"has more than one site named {name!r}", "give each site its own name")
    if not sites and not faults:
        faults.add(folder, "holds no site file", "add one YAML a hospital")
    faults.raise_if_any(StudyError)
    return sites


def load_site_file(path: Path) -> Site:
    """One hospital's file; paths in it are relative to it."""
    site = _validate(Site, _read(path), path.name)
    if site.data is not None and not site.data.is_absolute():
        site = site.model_copy(update={"data": (path.parent / site.data).resolve()})
    return site


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        near = ", ".join(sorted(str(other) for other in path.parent.glob("*.yaml"))[:5])
        raise StudyError.at(path, "does not exist", f"there is {near}" if near else "check the path") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StudyError.at(path, f"cannot be read as YAML: {error}", "mend the file") from error
    if not isinstance(raw, dict):
        raise StudyError.at(path, "is not a mapping of keys", "start from one of the files in configs/")
    return raw


def _override(raw: dict[str, Any], text: str, faults: Faults) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        faults.add(f"--set {text}", "is not key.path=value", "for example --set local.batch_size=8")
        return
    *parents, last = key.split(".")
    try:
        target: Any = raw
        for parent in parents:
            target = _step_into(target, parent)
        _assign(target, last, yaml.safe_load(value))
    except (LookupError, TypeError, ValueError, yaml.YAMLError) as error:
        faults.add(f"--set {text}", f"cannot be applied: {error}", "name a key of the study, list items by number")


def _step_into(target: Any, key: str) -> Any:
    if isinstance(target, list):
        return target[int(key)]
    if isinstance(target.get(key), str | int | float):
        # the short form `rule: fedprox` (or a plain number) opens up when one of its settings is named
        target[key] = {"kind": target[key]} if isinstance(target[key], str) else {}
    if target.get(key) is None:
        target[key] = {}
    return target[key]


def _assign(target: Any, key: str, value: Any) -> None:
    if isinstance(target, list):
        target[int(key)] = value
    else:
        target[key] = value


def _validate(model: type[M], raw: Mapping[str, Any], where: str) -> M:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise StudyError(*(_fault(model, dict(item), where) for item in error.errors())) from error


def _fault(model: type[BaseModel], item: dict[str, Any], where: str) -> Fault:
    key = ".".join(str(part) for part in item["loc"])
    place = f"{where}: {key}" if key else where
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return Fault(place, "is not a known key", _near(model, item["loc"]))
    if kind == "missing":
        return Fault(place, "is missing", "add it")
    if kind == "union_tag_invalid":
        return Fault(place, f"{context['tag']!r} is not known here", f"use one of {context['expected_tags']}")
    if kind == "union_tag_not_found":
        return Fault(place, "does not say its kind", "give a name, or a mapping with `kind`")
    what = item["msg"].removeprefix("Value error, ")
    return Fault(place, f"{what[:1].lower()}{what[1:]}, found {_short(item['input'])}", "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _near(model: type[BaseModel], location: Sequence[str | int]) -> str:
    known = _fields_at(model, location[:-1])
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"known keys: {', '.join(sorted(known))}" if known else "remove it"


def _fields_at(annotation: Any, location: Sequence[str | int]) -> list[str]:
    """Field names of the model that a fault's location leads to; tags of unions and list positions are stepped over."""
    models = _models(annotation)
    for part in location:
        inner = [
            found for model in models if part in model.model_fields for found in _models(model.model_fields[str(part)])
        ]
        tagged = [model for model in models if _kind(model) == part]
        models = inner or tagged or models
    return [name for model in models for name in model.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    metadata = getattr(annotation, "metadata", ())
    for point in metadata:
        if hasattr(point, "targets"):
            return [point.load(kind).Config for kind in point.targets]
    inner = getattr(annotation, "annotation", None)
    parts = [inner] if inner is not None else list(get_args(annotation))
    return [model for part in parts for model in _models(part)]


def _kind(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("kind")
    return field.default if field else None
