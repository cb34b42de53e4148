"""Records of tensors, records inside them included, changed as one."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar, cast

from torch import Tensor

from cache.stored import Stored, TileMaps

__all__ = ["changed_tensors", "detached", "even_parts", "some_rows"]

T = TypeVar("T")


def changed_tensors(record: T, change: Callable[[Stored], Stored]) -> T:
    """Give a copy of a record, records inside it included, with every tensor changed.

    Args:
        record: a dataclass instance; what is neither such nor a tensor stays as it is.
        change: makes of a tensor, or of maps in int8 with their scales, what takes its place.
    """
    value: Any = record
    if isinstance(value, Tensor | TileMaps):
        return cast(T, change(value))
    if not is_dataclass(value) or isinstance(value, type):
        return record
    parts = {
        part.name: changed_tensors(getattr(value, part.name), change) for part in fields(value)
    }
    return cast(T, replace(value, **parts))


def some_rows(record: T, rows: slice) -> T:
    """Give the rows of a record whose tensors all have rows on their first axis, without a copy."""
    return changed_tensors(record, lambda stored: stored[rows])


def even_parts(total: int, at_once: int) -> list[slice]:
    """Rows in as few parts of at most ``at_once`` as there can be, as even as they can be."""
    count = -(-total // at_once)
    bounds = [part * total // count for part in range(count + 1)]
    return [slice(first, last) for first, last in pairwise(bounds)]


def detached(record: T) -> T:
    """Give a record without what it was made from: no gradient goes back through it."""
    return changed_tensors(
        record, lambda value: value.detach() if isinstance(value, Tensor) else value
    )
