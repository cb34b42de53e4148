"""How long a very large cache takes to open, and how much memory.

    python -m benchmarks.cache_open --rows 1500000 --json open.json

Index and ledger are generated as a writer would leave them; array files are sparse, because
opening does not read them. Opening runs in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.cache_samples import spec
from cache import CaseRow
from cache.cases import CaseTable
from cache.creation import open_store
from cache.durable import sha256_of_bytes
from cache.index import CacheIndex
from cache.index_files import INDEX_FOLDER, encode_index, write_index
from cache.layout import LEDGER_FOLDER, CacheHeader, CompleteMark, write_complete_mark, write_header
from cache.ledger import LedgerEntry, ShardFile, cache_digest, encode_entry, entry_path
from cache.ledger_seal import encode_seal, seal_path
from cache.schema import RowSpace
from cache.tables import PromptTable, SliceTable, TrackTable

_OPEN = """
import json, sys, time
from pathlib import Path
def peak():  # of this program; ru_maxrss starts with the parent's
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
from cache import CacheReader
from cache.shuffle import ShuffledRows
found = {"imported_bytes": peak()}
started = time.perf_counter()
reader = CacheReader(Path(sys.argv[1]))
found["ledger_seconds"] = time.perf_counter() - started
complete = reader.complete
found["ledger_peak_bytes"] = peak()
rows = reader.index.select("slices", split="train")
found["open_seconds"] = time.perf_counter() - started
found["peak_bytes"] = peak()
started = time.perf_counter()
order = ShuffledRows(rows, 16, seed=1)
order.batch(0)
found["shuffle_seconds"] = time.perf_counter() - started
print(json.dumps({**found, "rows": len(rows), "complete": complete}))
"""


def make_index(rows: int, slices_a_case: int = 100) -> CacheIndex:
    """Give an index of ``rows`` slices in cases of one hundred."""
    cases = -(-rows // slices_a_case)
    table = CaseTable.of(
        CaseRow(
            case_id=f"case{number:06d}",
            patient_id=f"patient{number:06d}",
            split="val" if number % 10 == 0 else "train",
            modality="CT",
            depth=slices_a_case,
            height=512,
            width=512,
            spacing_mm=(2.5, 0.7, 0.7),
            files={f"case{number:06d}.npz": f"{number:064x}"},
        )
        for number in range(cases)
    )
    row = np.arange(rows)
    slices = SliceTable(
        case_code=(row // slices_a_case).astype(np.int32),
        slice_index=(row % slices_a_case).astype(np.int32),
        view=np.zeros(rows, dtype=np.int16),
        affine_code=np.zeros(rows, dtype=np.int32),
        affines=np.array([[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]]),
    )
    return CacheIndex(
        cases=table,
        slices=slices,
        prompts=PromptTable.of((), table.codes),
        tracks=TrackTable.of((), table.codes),
    )


def make_cache(path: Path, rows: int) -> None:
    """Make a cache whose arrays are holes."""
    settings, index = spec("zarr"), make_index(rows)
    files = encode_index(index)
    path.mkdir(parents=True)
    header = CacheHeader(
        spec=settings,
        counts=index.counts(),
        index_sha256=index.content_sha256,
        index_files=write_index(path / INDEX_FOLDER, files),
    )
    write_header(path, header)
    store = open_store(path, header)
    store.prepare()
    (path / LEDGER_FOLDER).mkdir()
    entries: dict[tuple[RowSpace, int], LedgerEntry] = {}
    sizes: dict[tuple[RowSpace, int], int] = {}
    rng = np.random.default_rng(0)
    for shard in range(settings.shard_count(rows)):
        these = settings.shard_rows(shard, rows)
        arrays = {}
        for array in settings.arrays:
            name = store.shard_file(array, shard)
            size = settings.shard_file_bytes(array, len(these))
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            with (path / name).open("wb") as file:
                os.truncate(file.fileno(), size)
            arrays[array.name] = ShardFile(
                file=name,
                bytes=size,
                sha256=rng.bytes(32).hex(),
                row_crc32c=rng.integers(0, 1 << 32, len(these), dtype=np.uint32),
            )
        entry = LedgerEntry(
            space="slices",
            shard=shard,
            start=these.start,
            stop=these.stop,
            fingerprint=settings.fingerprint(),
            arrays=arrays,
        )
        content = encode_entry(entry)
        entry_path(path, "slices", shard).write_bytes(content)
        entries["slices", shard], sizes["slices", shard] = entry, len(content)
    seal = encode_seal(entries, sizes)
    seal_path(path).write_bytes(seal)
    mark = CompleteMark(
        cache_digest=cache_digest(header, entries),
        statistics_sha256="",
        seal_sha256=sha256_of_bytes(seal),
    )
    write_complete_mark(path, mark)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_500_000)
    parser.add_argument("--folder", type=Path, help="where the cache goes; kept")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cache-open-") as temporary:
        path = (chosen.folder or Path(temporary)) / f"{chosen.rows}.cache"
        if not path.exists():
            make_cache(path, chosen.rows)
        command = [sys.executable, "-c", _OPEN, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    for name, value in report.items():
        print(f"{name:18} {value:,.3f}" if isinstance(value, float) else f"{name:18} {value:,}")
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
