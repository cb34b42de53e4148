"""What an object store says of an object."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ObjectState", "RemoteObject", "described"]


@dataclass(frozen=True, kw_only=True)
class ObjectState:
    """What tells an object from what it was before, and after.

    Attributes:
        e_tag: as the store gives it; S3 and Azure compare it.
        version: likewise; Google's store compares it.
    """

    e_tag: str
    version: str | None


@dataclass(frozen=True, kw_only=True)
class RemoteObject:
    """One object.

    Attributes:
        bytes: its size.
        e_tag: identity of its content, as the store gives it.
        modified: seconds since 1970 of its last change, by the store's clock.
        version: of the object, where the store counts versions.
    """

    bytes: int
    e_tag: str
    modified: float
    version: str | None = None

    @property
    def state(self) -> ObjectState:
        """For ``put_if_same``."""
        return ObjectState(e_tag=self.e_tag, version=self.version)


def described(meta: Mapping[str, Any]) -> RemoteObject:
    """Give what ``obstore`` says of an object."""
    return RemoteObject(
        bytes=meta["size"],
        e_tag=meta["e_tag"] or "",
        modified=meta["last_modified"].timestamp(),
        version=meta["version"],
    )
