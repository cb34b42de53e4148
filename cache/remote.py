"""A folder of objects on an S3-compatible store (or GCS, or Azure), as ``obstore`` gives it.

Requests are repeated until the store answers or patience ends: ``cache.patience``. A PUT is atomic;
that it arrived whole is checked by the digest that the store gives back, or by reading the object
again.
"""

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cache.errors import CacheCorruptError
from cache.patience import Asking, Patience
from cache.remote_object import ObjectState, RemoteObject, described

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["RemoteFolder"]

ResultT = TypeVar("ResultT")

_MD5 = re.compile(r"^\"?([0-9a-f]{32})\"?$")
_BLOCK_BYTES = 1 << 20
_ONE_REQUEST_BYTES = 256 << 20  # up to here a file goes up whole, and its ETag is its MD5
_PART_BYTES = 64 << 20
_SMALL_BYTES = 1 << 20
_SLOW_BYTES_PER_SECOND = 1e6  # a line on which an answer to an upload is waited for in silence


class RemoteFolder:
    """Objects below one prefix. May be used from several threads.

    Args:
        store: an ``obstore`` store that begins at the prefix.
        url: where that is, for messages and commands (``s3://bucket/prefix``).
        sender: the same for what takes long to send, during which the store says nothing.
        patience: how long a store that does not answer is asked again.
        note: told once when that begins, and once when it is over.
        reopen: opens the same folder in another process, with the credentials of its environment;
            can be pickled, and holds none.

    Attributes:
        url: as given.
        reopen: as given.
    """

    def __init__(
        self,
        store: "ObjectStore",
        url: str,
        *,
        sender: "ObjectStore | None" = None,
        patience: Patience | None = None,
        note: Callable[[str], None] | None = None,
        reopen: "Callable[[], RemoteFolder] | None" = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.reopen = reopen
        self._store = store
        self._sender = sender or store
        self._asking = Asking(self.url, patience or Patience(), note)

    def within(self, seconds: float) -> "RemoteFolder":
        """Give the same folder, asked again for so long at most where the store is silent."""
        folder = copy(self)
        folder._asking = self._asking.within(seconds)
        return folder

    def close(self) -> None:
        """Let requests that wait for the store give up at once."""
        self._asking.close()

    def list(self, prefix: str = "") -> dict[str, RemoteObject]:
        """Give all objects below a prefix by name, in any depth."""
        import obstore

        def call() -> dict[str, RemoteObject]:
            pages = obstore.list(self._store, prefix or None)
            return {meta["path"]: described(meta) for page in pages for meta in page}

        return self._in_bucket(f"listing {prefix or '/'}", call)

    def list_here(self) -> tuple[dict[str, RemoteObject], tuple[str, ...]]:
        """Give the objects directly in the folder, and the names of its folders."""
        import obstore

        def call() -> tuple[dict[str, RemoteObject], tuple[str, ...]]:
            found = obstore.list_with_delimiter(self._store)
            objects = {meta["path"]: described(meta) for meta in found["objects"]}
            return objects, tuple(name.rstrip("/") for name in found["common_prefixes"])

        return self._in_bucket("listing /", call)

    def head(self, name: str) -> RemoteObject | None:
        """Describe an object, or give ``None`` where there is none."""
        import obstore

        try:
            return self._asking.ask(name, lambda _: described(obstore.head(self._store, name)))
        except FileNotFoundError:
            return None

    def read(self, name: str) -> tuple[bytes, RemoteObject] | None:
        """Give an object's content and description, or ``None`` where there is none."""
        import obstore

        def call(answering: Callable[[], None]) -> tuple[bytes, RemoteObject]:
            got = obstore.get(self._store, name)
            answering()
            return bytes(got.bytes()), described(got.meta)

        try:
            return self._asking.ask(name, call)
        except FileNotFoundError:
            return None

    def download(self, name: str, file: Path) -> tuple[str, RemoteObject]:
        """Copy an object into a file, forced to the disk.

        Returns:
            SHA-256 of what was written, and the object's description.

        Raises:
            FileNotFoundError: there is no such object.
        """

        def call(answering: Callable[[], None]) -> tuple[str, RemoteObject]:
            with file.open("wb") as opened:
                found = self._stream(name, opened.write, answering)
                opened.flush()
                os.fsync(opened.fileno())
            return found

        return self._asking.ask(name, call)

    def sha256(self, name: str) -> tuple[str, RemoteObject]:
        """Give the SHA-256 of an object's bytes and its description; reads all of it.

        Raises:
            FileNotFoundError: there is no such object.
        """

        def call(answering: Callable[[], None]) -> tuple[str, RemoteObject]:
            return self._stream(name, lambda _: None, answering)

        return self._asking.ask(name, call)

    def _stream(
        self, name: str, take: Callable[[Any], Any], answering: Callable[[], None]
    ) -> tuple[str, RemoteObject]:
        import obstore

        got = obstore.get(self._store, name)
        answering()
        digest = hashlib.sha256()
        for block in got.stream(min_chunk_size=_BLOCK_BYTES):
            digest.update(memoryview(block))
            take(memoryview(block))
        return digest.hexdigest(), described(got.meta)

    def put(self, name: str, content: bytes | Path) -> str:
        """Write an object whole and check that it arrived.

        Args:
            name: of the object; an older one is replaced.
            content: its bytes, or the file that holds them.

        Returns:
            Its ETag.

        Raises:
            CacheCorruptError: the store holds other bytes than were sent.
        """
        import obstore

        plain = content if isinstance(content, bytes) else None
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        together = size <= _ONE_REQUEST_BYTES
        store = self._store_for(size)

        def call() -> str:
            source: Any = content.read_bytes() if isinstance(content, Path) and together else plain
            if source is None:
                source = content
            result = obstore.put(
                store, name, source, use_multipart=not together, chunk_size=_PART_BYTES
            )
            return result["e_tag"] or ""

        e_tag = self._in_bucket(name, call, quiet_seconds=_quiet_seconds(size))
        if not self.holds(name, content, e_tag):
            raise CacheCorruptError(
                f"{self.url}/{name} holds other bytes than were sent. The network, the store "
                "or the memory is failing: check them, then run the command again"
            )
        return e_tag

    def holds(self, name: str, content: bytes | Path, e_tag: str) -> bool:
        """Whether an object of this ETag has these bytes; reads it where the ETag does not tell."""
        stated = _MD5.match(e_tag)
        if stated and stated[1] == _digest(content, "md5"):
            return True
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        found = self.head(name)
        if found is None or found.bytes != size:
            return False
        with suppress(FileNotFoundError):
            return self.sha256(name)[0] == _digest(content, "sha256")
        return False

    def put_if_absent(self, name: str, content: bytes) -> ObjectState | None:
        """Write an object that must not exist; give its state, or ``None`` where it exists."""
        from obstore.exceptions import AlreadyExistsError

        try:
            return self._in_bucket(
                name,
                lambda: self._put_if(name, content, "create"),
                quiet_seconds=_quiet_seconds(len(content)),
            )
        except AlreadyExistsError:
            return None

    def put_if_same(self, name: str, content: bytes, state: ObjectState) -> ObjectState | None:
        """Replace an object of a known state; give the new one, or ``None`` where it changed."""
        from obstore.exceptions import PreconditionError

        # obstore takes no None for what a store does not give.
        mode = {"e_tag": state.e_tag, "version": state.version}
        mode = {key: value for key, value in mode.items() if value is not None}
        try:
            return self._asking.ask(
                name,
                lambda _: self._put_if(name, content, mode),
                quiet_seconds=_quiet_seconds(len(content)),
            )
        except (PreconditionError, FileNotFoundError):
            return None

    def _put_if(self, name: str, content: bytes, mode: Any) -> ObjectState:  # noqa: ANN401
        import obstore

        store = self._store_for(len(content))
        found = obstore.put(store, name, content, mode=mode, use_multipart=False)
        return ObjectState(e_tag=found["e_tag"] or "", version=found["version"])

    def _store_for(self, size: int) -> "ObjectStore":
        return self._store if size <= _SMALL_BYTES else self._sender

    def delete(self, *names: str) -> None:
        """Remove objects; nothing happens where there is none."""
        import obstore

        def call() -> None:
            obstore.delete(self._store, names)

        if names:
            with suppress(FileNotFoundError):
                self._asking.ask(names[0], lambda _: call())

    def _in_bucket(
        self, what: str, call: Callable[[], ResultT], *, quiet_seconds: float = 0.0
    ) -> ResultT:
        """Do what can find nothing missing but the bucket itself."""
        try:
            return self._asking.ask(what, lambda _: call(), quiet_seconds=quiet_seconds)
        except FileNotFoundError as error:
            raise self._asking.unreachable(what, error) from error


def _quiet_seconds(size: int) -> float:
    return size / _SLOW_BYTES_PER_SECOND


def _digest(content: bytes | Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    if isinstance(content, bytes):
        digest.update(content)
    else:
        with content.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
