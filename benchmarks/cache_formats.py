"""Ways to keep cached features on a disk: ours, and those that others use.

Each format writes the same samples and fills batches of the same memory, so that what is timed
is a batch that a training step could use. A format whose package is not installed is left out
by name.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cache_format import Format, Read, flush
from benchmarks.cache_samples import LEVELS, Batch, index, placed_zeros, sample, samples, spec
from benchmarks.streaming_formats import STREAMING
from cache import CacheReader, CacheWriter
from cache.encoding import StoredWord, encode
from cache.schema import TILE_SIDE

__all__ = ["FORMATS", "check_int8"]


def _write_raw(folder: Path, count: int) -> None:
    with (folder / "samples.bin").open("wb") as file:
        for item in samples(count):
            for values in item.values():
                file.write(values.tobytes())
    flush(folder)


def _open_raw(folder: Path) -> Read:
    descriptor = os.open(folder / "samples.bin", os.O_RDONLY)
    views: dict[int, list[list[Any]]] = {}

    def read(rows: Sequence[int], out: Batch) -> None:
        pieces = views.get(id(out))
        if pieces is None:
            flat = [values.reshape(len(values), -1).view(np.uint8) for values in out.values()]
            pieces = views[id(out)] = [list(row) for row in zip(*flat, strict=True)]
        size = sum(len(piece) for piece in pieces[0])
        for place, row in enumerate(rows):
            os.preadv(descriptor, pieces[place], row * size)

    return read


def write_cache(store: str, word: StoredWord = "fp16") -> Callable[[Path, int], None]:
    """Give the writer of a cache of ours in a format and stored type."""

    def write(folder: Path, count: int) -> None:
        made = CacheWriter.create_or_resume(folder / "cache", spec(store, word), index(count))
        with made as writer:
            for shard in writer.missing_shards("slices"):
                items = [sample(row) for row in writer.rows_of_shard("slices", shard)]
                arrays: dict[str, np.ndarray] = {}
                for name in LEVELS:
                    rows = np.stack([item[name] for item in items])
                    arrays |= encode(writer.spec.array(name), rows)
                writer.write_shard("slices", shard, arrays)
            writer.finish()

    return write


def _open_direct(folder: Path) -> Read:
    reader = CacheReader(folder / "cache")
    return lambda rows, out: reader.read_into(out, rows)


class _Int8Read:
    """Reads int8 and scales into memory of its own, one for each batch of the others.

    They are multiplied on the device that trains: a step on a CPU reads float16 faster.
    """

    def __init__(self, folder: Path) -> None:
        self.reader = CacheReader(folder / "cache")
        self._memory: dict[int, dict[str, np.ndarray]] = {}

    def __call__(self, rows: Sequence[int], out: Batch) -> None:
        memory = self._memory.get(id(out))
        if memory is None:
            memory = self._memory[id(out)] = {
                array.name: placed_zeros((len(rows), *array.shape), array.dtype)
                for array in self.reader.spec.arrays
            }
        self.reader.read_into(memory, rows)


def check_int8(read: Read, rows: Sequence[int], name: str) -> None:
    """Refuse int8 that is further from a sample than half a step of its tile.

    Raises:
        RuntimeError: a value is.
    """
    assert isinstance(read, _Int8Read)
    for level in LEVELS:
        scales = read.reader.read(f"{level}_scale", rows)
        steps = np.repeat(np.repeat(scales, TILE_SIDE, axis=-2), TILE_SIDE, axis=-1)
        decoded = read.reader.read_decoded(level, rows)
        for place, number in enumerate(rows):
            error = np.abs(decoded[place] - sample(number)[level].astype(np.float32))
            if (error > 0.5001 * steps[place]).any():
                raise RuntimeError(f"{name} is too far from sample {number}, {level}")


def _write_npy(folder: Path, count: int) -> None:
    for number, item in enumerate(samples(count)):
        for name, values in item.items():
            np.save(folder / f"{number}_{name}.npy", values)
    flush(folder)


def _open_npy(folder: Path) -> Read:
    def read(rows: Sequence[int], out: Batch) -> None:
        for name, values in out.items():
            for place, row in enumerate(rows):
                values[place] = np.load(folder / f"{row}_{name}.npy")

    return read


def _write_pt(folder: Path, count: int) -> None:
    import torch

    for number, item in enumerate(samples(count)):
        tensors = {name: torch.from_numpy(values) for name, values in item.items()}
        torch.save(tensors, folder / f"{number}.pt")
    flush(folder)


def _open_pt(folder: Path) -> Read:
    import torch

    def read(rows: Sequence[int], out: Batch) -> None:
        for place, row in enumerate(rows):
            for name, tensor in torch.load(folder / f"{row}.pt", weights_only=True).items():
                out[name][place] = tensor.numpy()

    return read


def _open_zarr(folder: Path) -> Read:
    import zarr

    group = zarr.open_group(folder / "cache" / "arrays", mode="r")
    arrays: dict[str, Any] = {name: group[name] for name in LEVELS}

    def read(rows: Sequence[int], out: Batch) -> None:
        for name, values in out.items():
            for place, row in enumerate(rows):
                values[place] = arrays[name][row]

    return read


def _open_tensorstore(folder: Path) -> Read:
    import tensorstore as ts

    def opened(name: str) -> Any:  # noqa: ANN401 - tensorstore has no types
        path = str(folder / "cache" / "arrays" / name)
        place = {"driver": "file", "path": path}
        return ts.open({"driver": "zarr3", "kvstore": place}, read=True).result()

    arrays = {name: opened(name) for name in LEVELS}

    def read(rows: Sequence[int], out: Batch) -> None:
        pending = []
        for name, values in out.items():
            target = ts.array(values)
            pending += [target[place].write(arrays[name][row]) for place, row in enumerate(rows)]
        for future in pending:
            future.result()

    return read


def _open_h5py(folder: Path) -> Read:
    import h5py

    from cache.hdf5_store import DATASET_NAME

    opened: dict[str, list[Any]] = {name: [] for name in LEVELS}
    for name, shards in opened.items():
        files = (folder / "cache" / "arrays" / name).glob("*.h5")
        for file in sorted(files, key=lambda file: int(file.stem)):
            shards.append(h5py.File(file, "r")[DATASET_NAME])

    def read(rows: Sequence[int], out: Batch) -> None:
        for name, values in out.items():
            for place, row in enumerate(rows):
                shard, slot = divmod(row, 64)
                opened[name][shard].read_direct(values, np.s_[slot : slot + 1], np.s_[place])

    return read


def _nothing(folder: Path, count: int) -> None:
    """Write nothing: another format's files are read."""


FORMATS: tuple[Format, ...] = (
    Format(name="raw", write=_write_raw, open=_open_raw),
    Format(name="direct", write=write_cache("zarr"), open=_open_direct),
    Format(name="hdf5", write=write_cache("hdf5"), open=_open_direct),
    Format(name="int8", write=write_cache("zarr", "int8"), open=_Int8Read, check=check_int8),
    Format(name="npy", write=_write_npy, open=_open_npy),
    Format(name="pt", write=_write_pt, open=_open_pt),
    Format(name="zarr_python", write=_nothing, open=_open_zarr, folder_of="direct"),
    Format(
        name="tensorstore",
        write=_nothing,
        open=_open_tensorstore,
        folder_of="direct",
        package="tensorstore",
    ),
    Format(name="h5py", write=_nothing, open=_open_h5py, folder_of="hdf5"),
    *STREAMING,
)
"""``raw`` is the yardstick: one file, ``preadv`` into the batch, nothing verified."""
