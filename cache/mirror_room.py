"""How many bytes of shards lie in a mirror, which of them are in use, and which have to go.

Never more than the bound: room is taken before a byte is written. Least recently used files go
first; one that is being read, fetched or not yet uploaded never does.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from cache.errors import CacheSpaceError

__all__ = ["MirrorFigures", "MirrorRoom"]


@dataclass(frozen=True, kw_only=True)
class MirrorFigures:
    """What a mirror has done since it was opened.

    Attributes:
        fetched: shard files that were fetched.
        fetched_bytes: their bytes.
        evicted: shard files that had to go.
        bytes: of shard files that lie there now.
        peak_bytes: the most that lay there at any moment, files in the making included.
    """

    fetched: int
    fetched_bytes: int
    evicted: int
    bytes: int
    peak_bytes: int


@dataclass(kw_only=True, slots=True)
class _Item:
    bytes: int
    users: int
    there: bool


class MirrorRoom:
    """The room of one mirror. May be used from several threads.

    Args:
        bound: bytes.
        remove: called with a file's name when it must go; runs under the room's lock.

    Attributes:
        bound: bytes.
        used: bytes of files that are there or for which room was taken.
        peak: the most that ``used`` has been.
        evicted: files that had to go.
    """

    def __init__(self, bound: int, remove: Callable[[str], None]) -> None:
        self.bound = bound
        self.used = 0
        self.peak = 0
        self.evicted = 0
        self._remove = remove
        self._changed = threading.Condition()
        self._items: OrderedDict[str, _Item] = OrderedDict()

    def add(self, name: str, size: int) -> None:
        """Count a file that lies there already."""
        with self._changed:
            self._items[name] = _Item(bytes=size, users=0, there=True)
            self.used += size
            self._evict(0)
            self.peak = max(self.peak, self.used)

    def use(self, names: Mapping[str, int]) -> bool:
        """Take all of these files into use if each is there in its size; else none."""
        with self._changed:
            items = [self._items.get(name) for name in names]
            for item, size in zip(items, names.values(), strict=True):
                if item is None or not item.there or item.bytes != size:
                    return False
            for name in names:
                self._items[name].users += 1
                self._items.move_to_end(name)
            return True

    def use_one(self, name: str, size: int) -> Literal["there", "taken"]:
        """Take a file into use: wait while another thread fetches it, or take room for it.

        Returns:
            ``there``: the file can be read. ``taken``: the caller must write it, then call
            ``arrived``, or ``abandon`` where it cannot. ``unuse`` comes last in any case of
            ``there`` or ``arrived``.

        Raises:
            CacheSpaceError: it is larger than the bound.
        """
        with self._changed:
            while True:
                item = self._items.get(name)
                if item is None:
                    if self._take({name: size}, wait=True):
                        return "taken"
                elif item.there and item.bytes != size and not item.users:
                    self._drop(name)
                elif item.there and item.bytes == size:
                    item.users += 1
                    self._items.move_to_end(name)
                    return "there"
                else:
                    self._changed.wait()

    def take(self, names: Mapping[str, int], *, wait: bool) -> bool:
        """Take room for new files, in use from now on.

        Args:
            names: file → bytes.
            wait: until files in use are no longer; else give ``False`` where there is no room.

        Returns:
            Whether the room was taken; ``False`` also where one of the files is known already.

        Raises:
            CacheSpaceError: together they are larger than the bound.
        """
        with self._changed:
            return self._take(names, wait=wait)

    def arrived(self, name: str) -> None:
        """Say that a file for which room was taken is there, still in use."""
        with self._changed:
            self._items[name].there = True
            self._items.move_to_end(name)
            self._changed.notify_all()

    def abandon(self, names: Iterable[str]) -> None:
        """Give room back; the files do not exist."""
        with self._changed:
            for name in names:
                item = self._items.pop(name, None)
                self.used -= item.bytes if item else 0
            self._changed.notify_all()

    def unuse(self, names: Iterable[str]) -> None:
        """Say that files are no longer in use."""
        with self._changed:
            for name in names:
                self._items[name].users -= 1
            self._changed.notify_all()

    def touch(self, name: str) -> bool:
        """Make a file the most recently used; give whether it is there or coming."""
        with self._changed:
            if name not in self._items:
                return False
            self._items.move_to_end(name)
            return True

    def drop(self, name: str) -> None:
        """Remove a file that is not in use; nothing happens with others."""
        with self._changed:
            item = self._items.get(name)
            if item is not None and item.there and not item.users:
                self._drop(name)

    def _take(self, names: Mapping[str, int], *, wait: bool) -> bool:
        needed = sum(names.values())
        if needed > self.bound:
            raise CacheSpaceError(
                f"the mirror may hold {self.bound:,} bytes, and one shard takes {needed:,}. Give "
                f"it more: --set cache.mirror.max_gb={needed * 3 / 1e9:.3g}"
            )
        while any(name in self._items for name in names) or not self._evict(needed):
            if not wait or any(name in self._items for name in names):
                return False
            self._changed.wait()
        for name, size in names.items():
            self._items[name] = _Item(bytes=size, users=1, there=False)
        self._count(needed)
        return True

    def _evict(self, needed: int) -> bool:
        if self.used + needed <= self.bound:
            return True
        idle = [name for name, item in self._items.items() if item.there and not item.users]
        if self.used + needed - sum(self._items[name].bytes for name in idle) > self.bound:
            return False  # nothing is thrown away in vain
        for name in idle:
            if self.used + needed <= self.bound:
                break
            self._drop(name)
            self.evicted += 1
        return True

    def _drop(self, name: str) -> None:
        self._remove(name)
        self.used -= self._items.pop(name).bytes
        self._changed.notify_all()

    def _count(self, size: int) -> None:
        self.used += size
        self.peak = max(self.peak, self.used)
