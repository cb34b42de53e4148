"""A cache of two short cases whose rows are written out by hand, and the passes that fill it.

Shape letters: S network input in pixels.
"""

from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from cache import (
    ArraySpec,
    CacheIndex,
    CacheSpec,
    CacheWriter,
    CaseRow,
    PromptRow,
    SliceRow,
    TeacherIdentity,
    TrackRow,
)
from efficient_medsam2.images import Case, Provenance, SplitReport
from efficient_medsam2.images.slices import LoadedSlices
from efficient_medsam2.teachers.sam2 import Sam2Teacher
from stages.cache_passes import CachePasses
from stages.cache_rows import CacheRows
from stages.cache_settings import PrecomputeConfig
from stages.cases import CaseHandle, DataConfig, Dataset
from tests.networks.tiny import SIZE, tiny_runner
from tests.stages.conftest import make_context

DEPTHS = {"long": 7, "short": 3}
OBJECTS = (1, 2)
FLIPPED = (-1.0, 0.0, SIZE - 1.0, 0.0, 1.0, 0.0)
BOX = (((10.0, 12.0), (40.0, 44.0)), (2, 3))
POINT = (((20.0, 24.0),), (1,))
MASK = ((), ())
PROMPTS = {"box": BOX, "points": POINT, "mask": MASK}


def make_case(name):
    depth = DEPTHS[name]
    generator = np.random.default_rng(len(name))
    image = generator.integers(0, 255, (depth, 50, 35), dtype=np.uint8)
    label = np.zeros((depth, 50, 35), np.uint16)
    label[:, 8:30, 5:20] = 1
    label[:, 34:45, 12:30] = 2
    return Case(
        case_id=name,
        patient_id=name,
        image=image,
        label=label,
        boxes=None,
        spacing_mm=(1.0, 1.0, 1.0),
        modality="uint8",
        affine=None,
        source=Provenance(files=(), format="npz"),
    )


class CountedSlices(LoadedSlices):
    """An open case that counts what is read, and may fail at a slice."""

    def __init__(self, case, log, error_at=None):
        super().__init__(case)
        self._log, self._error_at, self._name = log, error_at, case.case_id

    def pictures(self, start, stop, config):
        if self._error_at is not None and start >= self._error_at[0]:
            raise self._error_at[1]
        self._log.append((self._name, start))
        return super().pictures(start, stop, config)

    def close(self):
        self._log.append((self._name, "closed"))


@cache
def the_runner():
    """One runner for all teachers: position codes of a new one would be drawn afresh."""
    return tiny_runner()


class CountedTeacher(Sam2Teacher):
    """The tiny teacher; counts the slices that it encodes, and may be interrupted."""

    def __init__(self, runner=None):
        super().__init__(runner or the_runner())
        self.encoded = 0
        self.batches = []
        self.on_encode = lambda: None

    def encode(self, pixels_B3SS):
        self.on_encode()
        self.encoded += len(pixels_B3SS)
        self.batches.append(len(pixels_B3SS))
        return super().encode(pixels_B3SS)


def make_index(*, kinds=("box", "points", "mask"), tracks=True, views=2):
    """Every view of every slice; prompts of each kind on view 0; tracks of each kind both ways."""
    cases, slices, prompts, steps = [], [], [], []
    track = 0
    for name, depth in DEPTHS.items():
        cases.append(
            CaseRow(
                case_id=name,
                patient_id=name,
                split="train",
                modality="uint8",
                depth=depth,
                height=50,
                width=35,
                spacing_mm=(1.0, 1.0, 1.0),
            )
        )
        first = len(slices)
        for index in range(depth):
            for view in range(views):
                row = len(slices)
                shape = {"affine": FLIPPED} if view else {}
                slices.append(
                    SliceRow(row=row, case_id=name, slice_index=index, view=view, **shape)
                )
                for kind in kinds if view == 0 else kinds[:1]:
                    points, labels = PROMPTS[kind]
                    prompts.append(
                        PromptRow(
                            row=len(prompts),
                            case_id=name,
                            slice_index=index,
                            view=view,
                            object_id=OBJECTS[index % 2],
                            kind=kind,
                            points=points,
                            labels=labels,
                            slice_row=row,
                        )
                    )
        for number, kind in enumerate(kinds if tracks else ()):
            points, labels = PROMPTS[kind]
            for direction in (1, -1):
                start = min(1 + number, depth - 1)
                indices = range(start, depth) if direction > 0 else range(start, -1, -1)
                for step, index in enumerate(indices):
                    steps.append(
                        TrackRow(
                            row=len(steps),
                            track=track,
                            case_id=name,
                            object_id=OBJECTS[number % 2],
                            prompted_slice=start,
                            direction=direction,
                            step=step,
                            slice_index=index,
                            slice_row=first + index * views,
                            num_frames=depth,
                            kind=kind,
                            points=points,
                            labels=labels,
                        )
                    )
                track += 1
    return CacheIndex.from_rows(cases=cases, slices=slices, prompts=prompts, tracks=steps)


def make_spec(teacher, *, rows_per_shard=4, kind="float32", tracks=True):
    side = (teacher.logits_side,) * 2
    arrays = [
        ("image", "slices", (1, teacher.image_size, teacher.image_size), "uint8"),
        ("label", "slices", (teacher.image_size, teacher.image_size), "uint16"),
        *(
            (f"features_{name}", "slices", shape, kind)
            for name, shape in teacher.level_shapes.items()
        ),
        ("mask_logits", "prompts", side, kind),
        ("mask_iou", "prompts", (1,), "float32"),
        ("object_score", "prompts", (1,), "float32"),
    ]
    if tracks:
        grid = teacher.level_shapes["s16"][1:]
        arrays += [
            ("track_conditioned_s16", "tracks", (64, *grid), kind),
            ("track_memory_s16", "tracks", (64, *grid), kind),
            ("track_object_pointer", "tracks", (64,), "float32"),
            ("track_object_score", "tracks", (1,), "float32"),
            ("track_mask_logits", "tracks", side, kind),
            ("track_mask_iou", "tracks", (1,), "float32"),
        ]
    return CacheSpec(
        teacher=TeacherIdentity(name="tiny", weights_sha256="0" * 64, config={}),
        preprocessing={},
        precompute={},
        data_sha256="0" * 64,
        arrays=tuple(
            ArraySpec(name=name, rows=rows, shape=shape, dtype=dtype)
            for name, rows, shape, dtype in arrays
        ),
        rows_per_shard=rows_per_shard,
        created_by="test",
    )


@dataclass
class Work:
    """Fills a cache as often as it is asked to.

    Attributes:
        path: the cache.
        teacher: counts encodes.
        read: what was read of the cases, in order.
        error_at: (slice, error) of a case that fails while it is read.
    """

    path: object
    teacher: object = field(default_factory=CountedTeacher)
    index: CacheIndex = field(default_factory=make_index)
    rows_per_shard: int = 4
    kind: str = "float32"
    config: PrecomputeConfig = field(default_factory=lambda: PrecomputeConfig(batch_size=3))
    resume: bool = True
    read: list = field(default_factory=list)
    error_at: tuple | None = None

    def __call__(self):
        """Run the passes; gives the digest, and leaves ``reports``, ``notes``, ``batch_size``."""
        context = make_context(self.path, self.path, resume=self.resume)
        self.notes = context.progress.lines
        spec = make_spec(
            self.teacher,
            rows_per_shard=self.rows_per_shard,
            kind=self.kind,
            tracks=len(self.index.tracks) > 0,
        )
        with CacheWriter.create_or_resume(
            self.path, spec, self.index, replace=not self.resume
        ) as writer:
            passes = CachePasses(
                writer=writer,
                teacher=self.teacher,
                handles={handle.case_id: handle for handle in self.dataset().handles},
                rows=CacheRows(index=self.index, channels=1, files={}, skipped={}),
                data=DataConfig(source="phantom"),
                config=self.config,
                context=context,
            )
            self.batch_size = passes.batch_size
            self.reports = passes.run()
            return writer.finish()

    def dataset(self):
        handles = tuple(
            CaseHandle(
                case_id=name,
                patient_id=name,
                split="train",
                load=lambda name=name: make_case(name),
                open=lambda name=name: CountedSlices(make_case(name), self.read, self.error_at),
                files={},
                digests=dict,
                object_names={},
            )
            for name in DEPTHS
        )
        splits = SplitReport(assignment=dict.fromkeys(DEPTHS, "train"), shared={}, seed=0)
        return Dataset(handles=handles, splits=splits, notes=())

    def but(self, **changes):
        """The same work with other settings, nothing counted yet."""
        return replace(self, read=[], **changes)
