"""The teacher's three passes over a cache: slices, prompts, tracks.

Each reads ahead, computes and writes behind at the same time, shard by shard.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from cache import CacheReader, required_bytes
from cache.schema import RowSpace
from cache.sizes import shard_bytes
from efficient_medsam2.networks.device import pick_device
from stages.cache_batch_size import batch_size_for
from stages.cache_calls import Made, TeacherCalls, memory_errors
from stages.cache_meter import PassReport, WrittenBytes
from stages.cache_overlap import Overlap
from stages.cache_pictures import PictureReader
from stages.cache_prompt_pass import PromptPass
from stages.cache_rows import CacheRows
from stages.cache_settings import PrecomputeConfig
from stages.cache_shards import Shard, ShardAssembler, ShardSink
from stages.cache_slice_pass import SlicePass
from stages.cache_track_pass import TrackPass
from stages.cases import CaseHandle, DataConfig
from stages.context import StageContext

if TYPE_CHECKING:
    from efficient_medsam2.teachers.protocol import SliceTeacher

__all__ = ["CachePasses"]

PieceT = TypeVar("PieceT")


class _Pass(Protocol[PieceT]):
    """One pass: ``pieces`` runs in the reader's thread, ``compute`` in the teacher's."""

    description: str

    def pieces(self, shards: ShardAssembler) -> Generator[PieceT, None, None]:
        """What is to be computed, in order."""

    def compute(self, piece: PieceT) -> Iterator[tuple[np.ndarray, Made]]:
        """Rows and their arrays."""


class CachePasses:
    """The three passes over one cache.

    Args:
        writer: of the cache; while a pass runs, used in the writer's thread alone.
        teacher: in ``eval`` mode; moved to the context's device.
        handles: the cases that have rows, by their id.
        rows: the cache's rows.
        data: how images are prepared.
        config: what the teacher is asked.
        context: device and progress.
        open_reader: opens the cache that is being written; called in the reader's thread.
        keep_case: leave the last case open after a pass over the slices, for the next one.

    Attributes:
        batch_size: rows that the teacher gets at a time.

    Raises:
        StageConfigError: the device cannot compute in the wanted precision.
    """

    def __init__(
        self,
        *,
        writer: ShardSink,
        teacher: "SliceTeacher",
        handles: Mapping[str, CaseHandle],
        rows: CacheRows,
        data: DataConfig,
        config: PrecomputeConfig,
        context: StageContext,
        open_reader: Callable[[], CacheReader] | None = None,
        keep_case: bool = False,
    ) -> None:
        self._writer = writer
        self._teacher = teacher
        self._rows = rows
        self._context = context
        self._open_reader = open_reader or (lambda: CacheReader(writer.path))
        self._keep_case = keep_case
        self._pictures = PictureReader(
            handles,
            rows.index,
            intensity=data.intensity,
            channels=rows.channels,
            size=teacher.image_size,
        )
        device = pick_device(context.device)
        teacher.module.to(device)
        spec = writer.spec
        self._calls = TeacherCalls(
            teacher,
            device=device,
            precision=config.precision,
            stored=spec.arrays,
        )
        with memory_errors(2, device):
            self.batch_size = batch_size_for(
                config.batch_size,
                self._calls,
                channels=rows.channels,
                rows_per_shard=spec.rows_per_shard,
                folder=writer.path,
                resume=context.resume,
            )
        total = required_bytes(spec, rows.index.counts())["total"]
        self._written = WrittenBytes(
            writer.path, written=total - writer.missing_bytes(), total=total
        )

    def run(self) -> dict[RowSpace, PassReport]:
        """Make what is missing; a line on each pass goes to the progress.

        Raises:
            DataError: a file is damaged.
            CacheError: the disk is full or failing.
            StageMemoryError: a batch does not fit into the memory.
        """
        return {
            "slices": self.slices(),
            "prompts": self.prompts(),
            "tracks": self.tracks(),
        }

    def close(self) -> None:
        """Let go of a case that was left open."""
        self._pictures.close()

    def slices(self) -> PassReport:
        """Image, label and features of every slice."""
        work = SlicePass(self._pictures, self._calls, batch_size=self.batch_size)
        try:
            return self._run("slices", work)
        finally:
            if not self._keep_case:
                self._pictures.close()

    def prompts(self) -> PassReport:
        """The teacher's answer to every prompt, from cached features."""
        work = PromptPass(
            self._rows.index, self._open_reader, self._calls, batch_size=self.batch_size
        )
        return self._run("prompts", work)

    def tracks(self) -> PassReport:
        """Every track, from cached features.

        Raises:
            ValueError: there are tracks, and the teacher has no memory.
        """
        if not len(self._rows.index.tracks):
            return self._run("tracks", None)
        if self._teacher.tracker is None:
            raise ValueError("the cache has tracks, and its teacher has no memory to follow them")
        work = TrackPass(
            self._rows.index,
            self._open_reader,
            self._calls,
            self._teacher.tracker,
            batch_size=self.batch_size,
            rows_per_shard=self._writer.spec.rows_per_shard,
        )
        return self._run("tracks", work)

    def _run(self, space: RowSpace, work: _Pass[Any] | None) -> PassReport:
        shards = ShardAssembler(self._writer, space)
        rows = shards.missing_rows
        if work is None or not rows:
            return PassReport(name=space, rows=0, written=0)
        counts = self._rows.index.counts()
        finished = _Finished()

        def write(shard: Shard) -> None:
            self._writer.write_shard(shard.space, shard.number, shard.arrays)
            finished.rows += len(shards.missing[shard.number])
            self._written.add(shard_bytes(self._writer.spec, counts, space, shard.number))

        before = self._written.written
        total = counts[space]
        progress = self._context.progress
        with progress.bar(
            total=total, description=work.description, unit="row", initial=total - rows
        ) as bar:
            overlap: Overlap[Any, Shard] = Overlap(work.pieces(shards), write)
            try:
                with overlap, memory_errors(self.batch_size, self._calls.device):
                    for made in self._computed(overlap, work):
                        for shard in shards.add(*made):
                            overlap.hand_over(shard)
                        bar.update(finished.new(), **self._written.figures())
            finally:
                bar.update(finished.new(), **self._written.figures())
        report = PassReport(
            name=space, rows=rows, written=self._written.written - before, times=overlap.times
        )
        progress.note(f"precompute: {report.line()}")
        return report

    def _computed(
        self, overlap: Overlap[Any, Shard], work: _Pass[Any]
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Rows and arrays; those of a GPU are fetched while it works on the next batch."""
        late: tuple[np.ndarray, Made] | None = None
        for piece in overlap.pieces():
            for rows, made in work.compute(piece):
                if late is not None:
                    yield late[0], late[1].arrays()
                late = (rows, made)
                if not self._calls.pinned:
                    yield rows, made.arrays()
                    late = None
        if late is not None:
            yield late[0], late[1].arrays()


class _Finished:
    """Rows on the disk, counted in the writer's thread and told in the other."""

    def __init__(self) -> None:
        self.rows = 0
        self._told = 0

    def new(self) -> int:
        """Rows since the last call."""
        now = self.rows
        new, self._told = now - self._told, now
        return new
