"""Reading study and site files: YAML and `--set` in, a validated model out, or every fault at once."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from medfl.errors import Fault, Faults, StudyError
from medfl.plugins import PluginPoint
from medfl.study.model import Site, Study
from medfl.study.rules import conflicts
from medfl.study.yaml_text import parse

M = TypeVar("M", bound=BaseModel)


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """The study of a YAML file with `key.path=value` overrides applied; StudyError with all faults."""
    raw = _read(path)
    faults = Faults()
    for override in overrides:
        _override(raw, override, faults)
    try:
        study = _anchored(_validate(Study, raw, path.name), path.parent)
    except StudyError as error:
        raise StudyError(*faults, *error.faults) from error
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


def refuse_conflicts(study: Study) -> None:
    """StudyError with every combination in a study of somebody else's making that must not be."""
    faults = Faults()
    faults.extend(conflicts(study))
    faults.raise_if_any(StudyError)


def load_sites(folder: Path) -> list[Site]:
    """All `*.yaml` and `*.yml` of a folder by name; StudyError names every file that is wrong, and names used twice."""
    if not folder.is_dir():
        raise StudyError.at(folder, "is not a folder of site files", "give --sites a folder with one YAML a hospital")
    faults, sites = Faults(), []
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
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

    def absolute(there: Path) -> Path:
        return there if there.is_absolute() else (path.parent / there).resolve()

    shared = tuple(lent.model_copy(update={"manifest": absolute(lent.manifest)}) for lent in site.shared)
    data = None if site.data is None else absolute(site.data)
    return site.model_copy(update={"data": data, "shared": shared})


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        near = ", ".join(sorted(str(other) for other in path.parent.glob("*.yaml"))[:5])
        raise StudyError.at(path, "does not exist", f"there is {near}" if near else "check the path") from error
    except (OSError, ValueError) as error:
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
        target[int(last) if isinstance(target, list) else last] = parse(value)
    except (LookupError, ValueError) as error:
        faults.add(f"--set {text}", f"cannot be applied: {error}", "name a key of the study, list items by number")


def _step_into(target: dict[str, Any] | list[Any], part: str) -> dict[str, Any] | list[Any]:
    """The mapping or list at `part` of the target, made where there is none yet."""
    key: Any = int(part) if isinstance(target, list) else part
    found = target[key] if isinstance(target, list) else target.get(key)
    if not isinstance(found, dict | list):
        # the short form `rule: fedprox` (or a plain number) opens up when one of its settings is named
        target[key] = found = {"kind": found} if isinstance(found, str) else {}
    return found


def _validate(model: type[M], raw: Mapping[str, Any], where: str) -> M:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise StudyError(*(_fault(model, dict(item), where) for item in error.errors())) from error


def _fault(model: type[BaseModel], item: dict[str, Any], where: str) -> Fault:
    path, _ = _walk(model, item["loc"])
    place = f"{where}: {'.'.join(path)}" if path else where
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        _, models = _walk(model, item["loc"][:-1])
        known = {name for found in models for name in found.model_fields}
        return Fault(place, "is not a known key", _near(str(item["loc"][-1]), known, "known keys") or "remove it")
    if kind == "missing":
        return Fault(place, "is missing", "add it")
    if kind == "union_tag_invalid":
        tags = {tag.strip(" '") for tag in context["expected_tags"].split(",")}
        return Fault(place, f"{context['tag']!r} is not known here", _near(str(context["tag"]), tags, "use one of"))
    if kind == "union_tag_not_found":
        return Fault(place, "does not say its kind", "give a name, or a mapping with `kind`")
    what = item["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    found = "" if isinstance(item["input"], dict) else f", found {_short(item['input'])}"
    return Fault(place, f"{what[:1].lower()}{what[1:]}{found}", "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _near(wrong: str, known: Collection[str], otherwise: str) -> str:
    close = difflib.get_close_matches(wrong, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"{otherwise}: {', '.join(sorted(known))}" if known else ""


def _walk(model: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], list[type[BaseModel]]]:
    """A fault's location as its reader would write it, and the models it leads to.

    pydantic's locations also name the chosen member of each union, which is in nobody's file.
    """
    models, path = [model], list[str]()
    for part in location:
        fields = [found.model_fields[str(part)] for found in models if part in found.model_fields]
        tagged = [found for found in models if _kind(found) == part]
        if fields:
            models = [found for field in fields for found in _models(field)]
        elif tagged:
            models = tagged
            continue
        if "[" not in str(part):
            path.append(str(part))
    return path, models


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models among which a field's value may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    parts = get_args(annotation)
    if isinstance(annotation, FieldInfo):
        parts = (annotation.annotation, *annotation.metadata)
    for point in parts:
        if isinstance(point, PluginPoint):
            return [point.load(kind).Config for kind in point.targets]
    return [model for part in parts for model in _models(part)]


def _kind(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("kind")
    return field.default if field else None
