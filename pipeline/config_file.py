"""YAML config files and ``--set`` overrides, read into a pydantic model.

Generic over the model: ``pipeline.config`` says which one. A file may say ``extends: other``
(a preset's name or a path beside the file); mappings are merged deeply, everything else is
replaced. Every setting remembers the file and line it came from, so an error names its place.
"""

import difflib
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import ConfigError
from pipeline.presets import preset_names

__all__ = ["known_keys", "load", "parse_override", "resolve"]

ModelT = TypeVar("ModelT", bound=BaseModel)
_EXTENDS = "extends"


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads ``1e-4`` as a number (YAML 1.2) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# PyYAML implements YAML 1.1, where a float needs a dot: 1e-4 would be a string.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def resolve(name: str | Path, *, presets: Path, beside: Path | None = None) -> Path:
    """Find a config file: a path, a preset's name, or ``configs/NAME.yaml`` of the installation.

    Args:
        name: what the user wrote.
        presets: folder of the presets.
        beside: folder that is searched first (that of a file which extends ``name``).

    Raises:
        ConfigError: neither a file nor a preset; names the presets.
    """
    given = Path(name)
    folders = [beside] if beside is not None else []
    for folder in [*folders, Path()]:
        if (folder / given).is_file():
            return folder / given
    if given.suffix in ("", ".yaml") and str(given.parent) in (".", presets.name):
        preset = presets / f"{given.name.removesuffix('.yaml')}.yaml"
        if preset.is_file():
            return preset
    names = preset_names(presets)
    known = f"the presets are: {', '.join(names)}" if names else f"{presets} holds no preset"
    raise ConfigError(
        f"no config {str(name)!r}: neither a file nor a preset{_meant(given.stem, names)}; {known}"
    )


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Split ``a.b=value`` into its key path and its value, which is read as YAML.

    Raises:
        ConfigError: no ``=``, an empty key, or a value that is no YAML.
    """
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise ConfigError(
            f"--set {text}: expected key=value with a dotted key, such as "
            f"--set encoder.learning_rate=1e-3"
        )
    try:
        return path, yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {text}: the value is no YAML ({_one_line(error)}); "
            f"quote it: --set '{key}=\"...\"'"
        ) from error


def known_keys(model: type[BaseModel], prefix: str = "") -> tuple[str, ...]:
    """Every dotted key of ``model`` in order of declaration, blocks included."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        block = _block(field.annotation)
        if block is not None:
            keys += known_keys(block, f"{prefix}{name}.")
    return tuple(keys)


def load(
    model: type[ModelT], name: str | Path, overrides: Sequence[str] = (), *, presets: Path
) -> ModelT:
    """Read a config file or preset, put ``overrides`` on top and check the result.

    Args:
        model: the frozen pydantic model of the whole configuration.
        name: path or preset (see :func:`resolve`).
        overrides: ``a.b=value`` texts, applied in order.
        presets: folder of the presets.

    Raises:
        ConfigError: no such file, no YAML, an unknown key, a value of another type, a required
            key that is missing; each error names key, value, place and what would do.
    """
    merged: dict[str, Any] = {}
    places: dict[str, str] = {}
    for path, data, lines in reversed(_layers(resolve(name, presets=presets), presets)):
        merged = _merge(merged, data)
        places |= {key: f"{path}:{line}" for key, line in lines}
    for override in overrides:
        keys, value = parse_override(override)
        _put(merged, keys, value, override)
        places[".".join(keys)] = f"--set {override}"
    for key, field in model.model_fields.items():
        if merged.get(key) is None and _block(field.annotation) is not None:
            merged[key] = {}  # an absent or empty block is a block of defaults
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        problems = [_explain(detail, model, places) for detail in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(problems))) from error


def _layers(path: Path, presets: Path) -> list[tuple[Path, dict[str, Any], list[tuple[str, int]]]]:
    """Read ``path`` and what it extends, the most derived first."""
    layers: list[tuple[Path, dict[str, Any], list[tuple[str, int]]]] = []
    chain: list[Path] = []
    current: Path | None = path
    while current is not None:
        if current.resolve() in chain:
            raise ConfigError(f"{current}: `{_EXTENDS}` goes round in a circle")
        chain.append(current.resolve())
        data, lines = _read(current)
        base = data.pop(_EXTENDS, None)
        if base is not None and not isinstance(base, str):
            raise ConfigError(f"{current}: `{_EXTENDS}` must name one preset or file, not {base!r}")
        layers.append((current, data, lines))
        here = current.parent
        current = None if base is None else resolve(base, presets=presets, beside=here)
    return layers


def _read(path: Path) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """Parse one file into its mapping and the line of each dotted key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: no valid YAML: {_one_line(error)}") from error
    if data is None:
        return {}, []
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected `key: value` lines at the top level")
    return data, list(_lines(node))


def _lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = f"{prefix}{key.value}"
            yield dotted, key.start_mark.line + 1
            yield from _lines(value, f"{dotted}.")


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[key] = _merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _put(merged: dict[str, Any], keys: tuple[str, ...], value: Any, override: str) -> None:  # noqa: ANN401 (any YAML value)
    block = merged
    for depth, key in enumerate(keys[:-1]):
        below = block.get(key)
        if below is not None and not isinstance(below, dict):
            at = ".".join(keys[: depth + 1])
            raise ConfigError(f"--set {override}: {at} is {below!r}, it has no keys below it")
        block[key] = dict(below or {})
        block = block[key]
    below = block.get(keys[-1])
    both = isinstance(below, dict) and isinstance(value, dict)
    block[keys[-1]] = _merge(below, value) if both else value  # type: ignore[arg-type]


def _block(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 (any annotation)
    """Give the model inside an annotation (``M`` or ``M | None``), or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType):
        return next(filter(None, (_block(part) for part in get_args(annotation))), None)
    return None


def _explain(detail: ErrorDetails, model: type[BaseModel], places: Mapping[str, str]) -> str:
    key = ".".join(str(part) for part in detail["loc"]) or "(top level)"
    place = _place(key, places)
    where = f" ({place})" if place else ""
    kind, message = detail["type"], detail["msg"]
    if kind == "extra_forbidden":
        block, _, last = key.rpartition(".")
        prefix = f"{block}." if block else ""
        every = known_keys(model)
        siblings = [k.removeprefix(prefix) for k in every if k.startswith(prefix)]
        siblings = [k for k in siblings if "." not in k]
        near = [prefix + k for k in difflib.get_close_matches(last, siblings, n=3)]
        near += [k for k in every if k.rpartition(".")[2] == last and k not in near]
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        title = f"known keys of {block}" if block else "known keys"
        return f"unknown key {key}{where}{hint} ({title}: {', '.join(siblings)})"
    if kind == "missing":
        return f"{key} is required: put it into the config file or give --set {key}=..."
    expected = message.removeprefix("Value error, ")
    if expected.startswith("Input should be "):
        expected = "expected " + expected.removeprefix("Input should be ")
    value = "" if isinstance(detail["input"], dict | BaseModel) else f" = {detail['input']!r}"
    return f"{key}{value}{where}: {expected}"


def _place(key: str, places: Mapping[str, str]) -> str | None:
    """Where ``key``, or the nearest block around it, was given."""
    while key:
        if key in places:
            return places[key]
        key = key.rpartition(".")[0]
    return None


def _meant(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
