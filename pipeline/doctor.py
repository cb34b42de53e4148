"""Is this machine fit? One check a line, each with what mends it."""

import importlib
import platform
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

__all__ = ["Check", "examine_machine"]

_GIB = 1 << 30
_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "accelerate",
    "monai",
    "zarr",
    "pyarrow",
    "h5py",
    "nibabel",
    "pydicom",
)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        verdict: ``ok``; ``warn``: works with limits; ``fail``: something will not work.
        found: what is there.
        mend: what to do about it; empty when all is well.
    """

    name: str
    verdict: Literal["ok", "warn", "fail"]
    found: str
    mend: str = ""


def examine_machine(run_dir: Path) -> tuple[Check, ...]:
    """Look at everything a run needs.

    Args:
        run_dir: folder whose disk matters; need not exist.
    """
    checks = [_python()]
    checks += [_package(name) for name in _PACKAGES]
    single: tuple[Callable[[], Check], ...] = (
        *(_gpu, _memory, _cache_reader, _demo_extra, _presets, _teacher),
    )
    checks += [check() for check in single]
    return (*checks, _disk(run_dir))


def _python() -> Check:
    return Check(name="python", verdict="ok", found=platform.python_version())


def _package(name: str) -> Check:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        return Check(name=name, verdict="fail", found=str(error), mend="pip install -e .")
    except (ImportError, OSError, RuntimeError) as error:
        first = str(error).partition("\n")[0]
        mend = "reinstall it; torch and torchvision must come from one package index"
        return Check(name=name, verdict="fail", found=f"does not import: {first}", mend=mend)
    found = "imports"
    with suppress(metadata.PackageNotFoundError):
        found = metadata.version(name)
    return Check(name=name, verdict="ok", found=found)


def _gpu() -> Check:
    if util.find_spec("torch") is None:
        return Check(name="gpu", verdict="warn", found="unknown without torch")
    import torch

    if not torch.cuda.is_available():
        mend = "the demo runs on a CPU; precompute a large data set on a machine with a CUDA GPU"
        return Check(name="gpu", verdict="warn", found="none that CUDA sees", mend=mend)
    free, total = torch.cuda.mem_get_info()
    found = (
        f"{torch.cuda.get_device_name()}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, "
        f"CUDA {torch.version.cuda}"
    )
    if free < 3 * _GIB:
        mend = "close what uses it, or lower batch_size of the training stages"
        return Check(name="gpu", verdict="warn", found=found, mend=mend)
    return Check(name="gpu", verdict="ok", found=found)


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB available"
    if memory.available < 4 * _GIB:
        return Check(name="memory", verdict="warn", found=found, mend="4 GiB or more are advised")
    return Check(name="memory", verdict="ok", found=found)


def _cache_reader() -> Check:
    if util.find_spec("zarr") is None:
        return Check(name="cache reader", verdict="warn", found="unknown without zarr")
    from cache.direct_read import way_of_reading
    from cache.native_library import native_library

    found = way_of_reading()
    if native_library() is None:
        mend = "batches are read a little slower; with a C compiler (gcc, clang): pip install -e ."
        return Check(name="cache reader", verdict="warn", found=found, mend=mend)
    return Check(name="cache reader", verdict="ok", found=found)


def _disk(run_dir: Path) -> Check:
    existing = run_dir.resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    found = f"{free / _GIB:.1f} GiB free at {existing}"
    mend = "a slice takes 2 MiB of cache at 512 px; `plan` says the total: --set cache.path=..."
    if free < _GIB:
        return Check(name="disk", verdict="fail", found=found, mend=mend)
    if free < 20 * _GIB:
        return Check(name="disk", verdict="warn", found=found, mend=mend)
    return Check(name="disk", verdict="ok", found=found)


def _demo_extra() -> Check:
    if util.find_spec("nilearn") is None:
        mend = "pip install 'efficient-medsam2[demo]', or use demo --data phantom"
        return Check(name="demo extra", verdict="warn", found="nilearn is absent", mend=mend)
    version = metadata.version("nilearn")
    return Check(name="demo extra", verdict="ok", found=f"nilearn {version}")


def _presets() -> Check:
    from pipeline.config import load_config
    from pipeline.errors import ConfigError
    from pipeline.presets import PRESETS, preset_names

    names = preset_names(PRESETS)
    for name in names:
        try:
            load_config(name)
        except ConfigError as error:
            mend = "reinstall the package; its presets do not fit its code"
            return Check(name="presets", verdict="fail", found=f"{name}: {error}", mend=mend)
    if not names:
        mend = "reinstall the package: its folder configs/ is missing"
        return Check(name="presets", verdict="fail", found=f"none in {PRESETS}", mend=mend)
    return Check(name="presets", verdict="ok", found=", ".join(names))


def _teacher() -> Check:
    from safetensors import SafetensorError, safe_open

    import efficient_medsam2

    folder = Path(efficient_medsam2.__path__[0]) / "weights"
    files = sorted(folder.glob("**/*.safetensors"))
    if not files:
        mend = "demo --train-teacher trains one, or set teacher.checkpoint to MedSAM2_latest.pt"
        found = f"no weights in {folder}"
        return Check(name="shipped teacher", verdict="warn", found=found, mend=mend)
    for path in files:
        try:
            with safe_open(path, framework="pt") as weights:
                count = sum(weights.get_tensor(key).numel() for key in weights.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            found = f"{path.name} does not load: {error}"
            mend = "reinstall the package: the file is damaged"
            return Check(name="shipped teacher", verdict="fail", found=found, mend=mend)
    found = f"{', '.join(path.name for path in files)}; {count / 1e6:.1f} M numbers in the last"
    return Check(name="shipped teacher", verdict="ok", found=found)
