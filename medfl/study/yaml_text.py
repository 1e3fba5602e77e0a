"""YAML as users of studies expect it: 1e-3 is a number, and a key that is there twice is a fault."""

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, where 1e-3 is text and the last of two equal keys wins in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    "in a mapping", node.start_mark, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse(text: str) -> Any:
    """The value of a YAML text; ValueError says what is wrong with it and where."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def rewritten(text: str, values: Mapping[tuple[str | int, ...], str]) -> str:
    """The YAML text with other strings at these places (keys, and numbers of items), and with every other character as
    it was. ValueError when that cannot be done, or would say anything else but these strings anew."""
    expected, root = parse(text), yaml.compose(text, Loader=_Loader)
    found = set()
    for path, value in values.items():
        node = _node(root, path)
        # JSON text is YAML text
        found.add((node.start_mark.index, node.end_mark.index, json.dumps(value)))
        _set(expected, path, value)
    for start, end, written in sorted(found, reverse=True):
        text = text[:start] + written + text[end:]
    if parse(text) != expected:
        raise ValueError("other values would change with it")
    return text


def _node(root: Any, path: tuple[str | int, ...]) -> yaml.ScalarNode:
    for part in path:
        if isinstance(root, yaml.SequenceNode) and isinstance(part, int):
            root = root.value[part]
        elif isinstance(root, yaml.MappingNode):
            root = next((value for key, value in root.value if key.value == part), None)
    if not isinstance(root, yaml.ScalarNode):
        raise ValueError(f"{'.'.join(map(str, path))} is not written out")
    return root


def _set(target: Any, path: tuple[str | int, ...], value: str) -> None:
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
