"""Formats made for streaming training data: WebDataset, LitData, MosaicML's."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cache_format import Format, Read, flush
from benchmarks.cache_samples import LEVELS, Batch, samples

__all__ = ["STREAMING"]


def _write_webdataset(folder: Path, count: int) -> None:
    import webdataset

    with webdataset.ShardWriter(str(folder / "%04d.tar"), maxcount=64, verbose=0) as sink:
        for number, item in enumerate(samples(count)):
            sink.write(
                {"__key__": str(number), **{f"{name}.npy": _npy(item[name]) for name in LEVELS}}
            )
    flush(folder)


def _npy(values: Any) -> bytes:  # noqa: ANN401
    sink = io.BytesIO()
    np.save(sink, values)
    return sink.getvalue()


def _open_webdataset(folder: Path) -> Read:
    import webdataset

    files = sorted(map(str, folder.glob("*.tar")))
    data = webdataset.WebDataset(files, shardshuffle=len(files), empty_check=False)
    stream = iter(data.shuffle(64).decode().repeat())

    def read(rows: Sequence[int], out: Batch) -> list[int]:
        numbers = []
        for place in range(len(rows)):
            item = next(stream)
            numbers.append(int(item["__key__"]))
            for name, values in out.items():
                values[place] = item[f"{name}.npy"]
        return numbers

    return read


def _write_litdata(folder: Path, count: int) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=64 << 20)
    for number, item in enumerate(samples(count)):
        writer[number] = item
    writer.done()
    writer.merge()
    flush(folder)


def _open_by_number(data: Any) -> Read:  # noqa: ANN401 - either library's data set
    def read(rows: Sequence[int], out: Batch) -> None:
        for place, row in enumerate(rows):
            item = data[row]
            for name, values in out.items():
                values[place] = item[name]

    return read


def _open_litdata(folder: Path) -> Read:
    from litdata import StreamingDataset

    return _open_by_number(StreamingDataset(str(folder), shuffle=False, max_cache_size="1TB"))


def _write_mosaic(folder: Path, count: int) -> None:
    from streaming import MDSWriter

    columns = {
        name: "ndarray:float16:" + ",".join(map(str, shape)) for name, shape in LEVELS.items()
    }
    with MDSWriter(out=str(folder), columns=columns, size_limit="64mb", exist_ok=True) as writer:
        for item in samples(count):
            writer.write(item)
    flush(folder)


def _open_mosaic(folder: Path) -> Read:
    from streaming import LocalDataset

    return _open_by_number(LocalDataset(str(folder)))


STREAMING: tuple[Format, ...] = (
    Format(
        name="webdataset",
        write=_write_webdataset,
        open=_open_webdataset,
        package="webdataset",
        streaming=True,
    ),
    Format(
        name="litdata",
        write=_write_litdata,
        open=_open_litdata,
        package="litdata",
        streaming=True,
    ),
    Format(
        name="mosaic",
        write=_write_mosaic,
        open=_open_mosaic,
        package="streaming",
        streaming=True,
    ),
)
