"""What an ablation varies: keys with their values, every combination of them, and the seeds."""

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click

from pipeline.errors import ConfigError

__all__ = [
    "DEFAULT",
    "Combination",
    "Factor",
    "SeedList",
    "Value",
    "combinations",
    "parse_factor",
    "parse_factors",
]

DEFAULT = "default"
"""A value that leaves the key as the config has it."""

_OWN = {
    "run.dir": "the ablation keeps its results below the run.dir of the config",
    "run.seed": "say which seeds with --seeds 0,1,2",
    "cache.path": "caches are shared where their settings are equal",
    "teacher.train": "the teacher stage belongs to the config; vary teacher_training.* instead",
}
_NAMED = re.compile(r"([^@\[\]{}\"']+)@(.+)", re.DOTALL)
_OPENING, _CLOSING, _QUOTES = "[{(", "]})", "\"'"


@dataclass(frozen=True, kw_only=True)
class Value:
    """One value of a key.

    Attributes:
        label: its name in tables and plots.
        text: YAML, as after ``--set KEY=``; None leaves the key as the config has it.
    """

    label: str
    text: str | None


@dataclass(frozen=True, kw_only=True)
class Factor:
    """A key and the values that it is given."""

    key: str
    values: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One value for every key.

    Attributes:
        labels: key → the value's label.
        overrides: ``KEY=VALUE`` texts that make it.
    """

    labels: dict[str, str]
    overrides: tuple[str, ...]

    @property
    def title(self) -> str:
        """``encoder.steps=100, memory.forced=1``; ``the config`` where nothing is varied."""
        return ", ".join(f"{key}={label}" for key, label in self.labels.items()) or "the config"

    @property
    def folder(self) -> str:
        """A name for a folder: readable, and different for different combinations."""
        readable = re.sub(r"[^A-Za-z0-9._=-]+", "_", self.title)[:60].strip("_")
        digest = hashlib.sha256("\n".join((self.title, *self.overrides)).encode()).hexdigest()
        return f"{readable}-{digest[:8]}"


class SeedList(click.ParamType[tuple[int, ...] | int]):
    """``3``: so many, the run's own and those after it; ``0,1,2``: these."""

    name = "seeds"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...] | int:
        """Read the text: a number alone is a count."""
        if isinstance(value, int | tuple):
            return value
        parts = [part.strip() for part in str(value).rstrip(",").split(",")]
        if not all(part.isdecimal() for part in parts):
            self.fail(f"{value!r}: give how many (3) or which (0,1,2)", param, ctx)
        numbers = tuple(int(part) for part in parts)
        if len(set(numbers)) < len(numbers):
            self.fail(f"{value!r}: name each seed once", param, ctx)
        if "," in str(value):
            return numbers
        if numbers[0] < 1:
            self.fail(f"{value!r}: at least one seed; for seed 0 alone write 0,", param, ctx)
        return numbers[0]


def parse_factors(texts: Sequence[str]) -> tuple[Factor, ...]:
    """Read every ``--over``.

    Raises:
        ConfigError: see :func:`parse_factor`; or a key is given twice.
    """
    factors = tuple(parse_factor(text) for text in texts)
    keys = [factor.key for factor in factors]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"--over {key}: given twice; put all values into one --over")
    return factors


def parse_factor(text: str) -> Factor:
    """Read ``KEY=V1,V2``: values are YAML, commas inside brackets or quotes do not split.

    ``NAME@VALUE`` shows a value as ``NAME``, for mappings that change several keys of a block.

    Raises:
        ConfigError: no key, no value, a value given twice or that is no YAML, or a key that an
            ablation sets by itself.
    """
    key, equals, rest = text.partition("=")
    key = key.strip()
    if not key or not equals:
        raise ConfigError(
            f"--over {text}: expected KEY=V1,V2, such as --over encoder.learning_rate=1e-3,2e-3"
        )
    if key in _OWN:
        raise ConfigError(f"--over {key}: cannot be varied; {_OWN[key]}")
    values = tuple(_value(key, part.strip(), text) for part in _split(rest))
    for name, given in (
        ("value", [value.text or DEFAULT for value in values]),
        ("name", [value.label for value in values]),
    ):
        twice = next((each for each in given if given.count(each) > 1), None)
        if twice is not None:
            raise ConfigError(f"--over {text}: {name} {twice!r} is given twice")
    return Factor(key=key, values=values)


def combinations(factors: Sequence[Factor]) -> tuple[Combination, ...]:
    """Every combination of the values, the last key varying fastest; one where nothing varies."""
    keys = [factor.key for factor in factors]
    return tuple(
        Combination(
            labels={key: value.label for key, value in zip(keys, values, strict=True)},
            overrides=tuple(
                f"{key}={value.text}"
                for key, value in zip(keys, values, strict=True)
                if value.text is not None
            ),
        )
        for values in itertools.product(*(factor.values for factor in factors))
    )


def _value(key: str, part: str, text: str) -> Value:
    if not part:
        raise ConfigError(f"--over {text}: a value is empty; write null or '\"\"' if that is meant")
    named = _NAMED.fullmatch(part)
    label, value = (part, part) if named is None else (named[1].strip(), named[2].strip())
    if value == DEFAULT:
        return Value(label=label, text=None)
    from pipeline.config_file import parse_override

    parse_override(f"{key}={value}")
    return Value(label=label, text=value)


def _split(text: str) -> Iterator[str]:
    """Cut at the commas outside of brackets and quotes."""
    depth, quote, start = 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in _QUOTES:
            quote = letter
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
        elif letter == "," and depth == 0:
            yield text[start:place]
            start = place + 1
    yield text[start:]
