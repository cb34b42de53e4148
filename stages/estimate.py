"""What a cache would hold and take, before anything is written."""

from cache import required_bytes
from stages.cache_arrays import cache_spec
from stages.cache_rows import decide_rows
from stages.cache_settings import CacheConfig, PrecomputeConfig
from stages.cases import DataConfig, open_dataset
from stages.teacher_source import TeacherConfig

__all__ = ["estimate"]


def estimate(
    data: DataConfig,
    teacher_config: TeacherConfig,
    cache_config: CacheConfig,
    config: PrecomputeConfig,
) -> tuple[str, ...]:
    """What a cache would hold and take, in lines to print; reads the labels, writes nothing.

    The size follows from the teacher's network, so a teacher that is yet to be trained gives one
    line that says so.

    Raises:
        DataError: the data cannot be used.
        WeightsError: the teacher's checkpoint is missing or wrong.
    """
    from efficient_medsam2.teachers.load import load_teacher

    if teacher_config.train:
        return ("size of the cache: told by precompute, once the teacher is trained",)
    teacher = load_teacher(teacher_config.kind, teacher_config.checkpoint)
    notes: list[str] = []
    rows = decide_rows(
        open_dataset(data),
        data=data,
        prompts=config.prompts,
        tracks=config.tracks,
        size=teacher.runner.image_size,
        step=lambda: None,
        note=notes.append,
    )
    spec = cache_spec(teacher, rows, data, cache_config, config)
    counts = rows.index.counts()
    sizes = required_bytes(spec, counts)
    lines = [*notes, *(f"{count} {space}" for space, count in counts.items())]
    lines += [f"{name}: {size / 1e6:.1f} MB" for name, size in sizes.items() if name != "total"]
    return (*lines, f"total: {sizes['total'] / 1e6:.1f} MB")
