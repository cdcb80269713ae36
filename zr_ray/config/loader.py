"""YAML file + dotted overrides -> a checked config model; every refusal is one line that says what to change.

Left out on purpose: several files, interpolation, environment variables.
"""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from zr_ray.errors import ConfigError

Config = TypeVar("Config", bound=BaseModel)

REMOVED = {
    "rollout.temperature": (
        "rollouts are sampled at temperature 1, the only one at which their log-probs are the policy's; leave it out"
    )
}
"""Keys of earlier versions -> what to do instead, or the new name."""


def load_config(model_class: type[Config], path: Path | None, overrides: list[str]) -> Config:
    """The model from a YAML file (None: all defaults) with `a.b=value` overrides on top, each value parsed as YAML.

    Raises: ConfigError naming file or override and key: unknown key (nearest one suggested), wrong value, unreadable
    file.
    """
    tree = _read_yaml(path) if path is not None else {}
    overridden: set[str] = set()
    for override in overrides:
        key, value = _parse_override(override)
        _refuse_unknown(model_class, _nested(key, value), f"override {override!r}")
        _merge(tree, key, value)
        overridden.add(key)
    _refuse_unknown(model_class, tree, str(path))
    try:
        return model_class.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_one_line(model_class, error, overridden, path)) from None


def dump_yaml(config: BaseModel) -> str:
    """The resolved config as YAML; `load_config` reads it back to an equal model."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=1000)


def schema_help(model_class: type[BaseModel]) -> str:
    """Every key with type, limits, default and meaning, one per two lines, for --help."""
    lines = []
    for key, field in fields_of(model_class).items():
        lines += _help_of(key, field)
        entry = _entry_class(field)
        for name, inner in (fields_of(entry) if entry else {}).items():
            lines += _help_of(f"{key}[].{name}", inner)
    return "\n".join(lines)


def _help_of(key: str, field: Any) -> list[str]:
    if field.is_required():
        return [f"{key}  ({_type_name(field)}; required)", f"    {field.description}"]
    default = json.dumps(field.get_default(call_default_factory=True), default=str)
    return [f"{key}  ({_type_name(field)}; default {default})", f"    {field.description}"]


def fields_of(model_class: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> pydantic field of every leaf, in declaration order."""
    found: dict[str, Any] = {}
    for name, field in model_class.model_fields.items():
        section = _section_class(field)
        found |= fields_of(section, f"{prefix}{name}.") if section else {prefix + name: field}
    return found


def differing_keys(one: BaseModel, other: BaseModel) -> list[str]:
    """Dotted keys whose values differ between two models of the same class."""
    left, right = leaves(one), leaves(other)
    return [key for key in left | right if left.get(key, _MISSING) != right.get(key, _MISSING)]


_MISSING = object()


def leaves(config: BaseModel) -> dict[str, Any]:
    """Dotted key -> value, as JSON has it; the entries of a dictionary (rows of a table) are keys too."""
    return _leaves(config.model_dump(mode="json"))


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


class StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, where PyYAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor`: what it brings may be written again
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(Path(path).read_text(), Loader=StrictLoader)
    except OSError as error:
        raise ConfigError(
            f"cannot read config {path}: {error.strerror}; give a YAML file, for example one of jobs/configs"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold `section:` keys at top level, got a {type(tree).__name__}")
    return tree


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip("."):
        raise ConfigError(f"override must look like section.key=value, got {override!r}")
    try:
        return key.strip(), yaml.load(text, Loader=StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override {override!r}: the value is not valid YAML: {' '.join(str(error).split())}"
        ) from None


def _nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _merge(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for name in sections:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    if isinstance(value, dict) and isinstance(tree.get(leaf), dict):
        for name, inner in value.items():
            _merge(tree[leaf], str(name), inner)
    else:
        tree[leaf] = value


def _refuse_unknown(
    model_class: type[BaseModel], tree: dict[str, Any], where: str, prefix: str = "", top: type[BaseModel] | None = None
) -> None:
    """Walk the written keys against the model; the nearest key of the same section, then of the whole config, is
    suggested."""
    top = top or model_class
    for name, value in tree.items():
        key = prefix + str(name)
        if key in REMOVED:
            raise ConfigError(f"{where}: {key} is no key any more: {REMOVED[key]}")
        field = model_class.model_fields.get(str(name))
        if field is None:
            raise ConfigError(f"{where}: unknown key {key}; {_suggestion(model_class, prefix, str(name), top)}")
        section, entry = _section_class(field), _entry_class(field)
        for i, one in enumerate(value if isinstance(value, list) else ()):
            if entry and isinstance(one, dict):
                _refuse_unknown(entry, one, where, f"{key}[{i}].", top)
        if section and isinstance(value, dict):
            _refuse_unknown(section, value, where, key + ".", top)
        elif section:
            raise ConfigError(
                f"{where}: {key} is a section with the keys {', '.join(section.model_fields)}, got {value!r}"
            )


def _suggestion(section: type[BaseModel], prefix: str, name: str, top: type[BaseModel]) -> str:
    close = difflib.get_close_matches(name, list(section.model_fields), n=1, cutoff=0.6)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    every = {key.rsplit(".", 1)[-1]: key for key in fields_of(top)}
    close = difflib.get_close_matches(name, list(every), n=1, cutoff=0.75)
    if close:
        return f"did you mean {every[close[0]]}?"
    return f"{prefix.rstrip('.') or 'top level'} knows: {', '.join(section.model_fields)}"


def _section_class(field: Any) -> type[BaseModel] | None:
    return field.annotation if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel) else None


def _entry_class(field: Any) -> type[BaseModel] | None:
    """Model of the entries of a list of sections, or None."""
    parts = typing.get_args(field.annotation)
    return parts[0] if parts and isinstance(parts[0], type) and issubclass(parts[0], BaseModel) else None


_LIMITS = {
    "ge": "at least {}",
    "gt": "above {}",
    "le": "at most {}",
    "lt": "below {}",
    "multiple_of": "a multiple of {}",
}


def _type_name(field: Any) -> str:
    """`int, at least 2`, `'std' or 'none'`, `[float, float]`, `path or null`."""
    limits = [
        text.format(f"{getattr(limit, short):.10g}")
        for limit in field.metadata
        for short, text in _LIMITS.items()
        if hasattr(limit, short)
    ]
    return ", ".join([_annotation_name(field.annotation), *limits])


def _annotation_name(annotation: Any) -> str:
    parts = typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    match typing.get_origin(annotation):
        case None:
            return {"NoneType": "null", "Path": "path", "str": "text"}.get(annotation.__name__, annotation.__name__)
        case typing.Literal:
            return " or ".join(map(repr, parts))
        case builtin if builtin in (tuple, list):
            return f"[{', '.join('...' if part is ... else _annotation_name(part) for part in parts)}]"
        case _:
            return " or ".join(map(_annotation_name, parts))


def _one_line(model_class: type[BaseModel], error: ValidationError, overridden: set[str], path: Path | None) -> str:
    """All problems of one validation, each once, joined by `; `."""
    fields = fields_of(model_class)
    messages: dict[str, str] = {}
    for problem in error.errors():
        key = _dotted(fields, problem["loc"])
        if problem["type"] == "value_error":
            text = str(problem["ctx"]["error"])
            text = text if key not in fields else f"{key} {text}"
        else:
            text = f"{key} must be {_wanted(fields.get(key), problem)}, got {problem['input']!r}"
        from_file = path is not None and key in fields and key not in overridden
        messages.setdefault(key, f"{text} (in {path})" if from_file else text)
    return "; ".join(messages.values())


def _dotted(fields: dict[str, Any], loc: tuple[int | str, ...]) -> str:
    """The longest start of a pydantic location that is a key (unions and tuples add parts that are not)."""
    for end in range(len(loc), 0, -1):
        key = ".".join(map(str, loc[:end]))
        if key in fields:
            inside = loc[end : end + 2] if _entry_class(fields[key]) else ()
            return key + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in inside)
    return ".".join(map(str, loc))


def _wanted(field: Any, problem: Mapping[str, Any]) -> str:
    kind, limits = problem["type"], problem.get("ctx", {})
    why = (field.json_schema_extra or {}).get("why", "") if field else ""
    for short, text in _LIMITS.items():
        if short in limits:
            return text.format(limits[short]) + (f" {why}" if why else "")
    if kind == "string_pattern_mismatch":
        return "made of letters, digits, dots, dashes and underscores"
    if field is not None and typing.get_origin(field.annotation) is not None:
        return _type_name(field)
    named = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "string": "text",
        "path": "a path",
        "finite": "finite",
    }
    matching = [words for start, words in named.items() if kind.startswith(start)]
    return matching[0] if matching else f"{_type_name(field) if field else 'valid'} ({problem['msg']})"
