"""Distil MedSAM2 into small promptable 3D segmentation models.

What an application needs to run a model is importable from here; each name loads its module when
it is first used, so that importing the package (or only its errors) does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from efficient_medsam2.errors import (
    DataError,
    EfficientMedSAM2Error,
    MissingExtraError,
    NetworkConfigError,
    WeightsError,
)

if TYPE_CHECKING:
    from efficient_medsam2.images.case import Case
    from efficient_medsam2.images.find import find_cases
    from efficient_medsam2.images.intensity import IntensityConfig, to_uint8
    from efficient_medsam2.images.source import CaseList
    from efficient_medsam2.images.write import write_label
    from efficient_medsam2.metrics import dsc, nsd, official_nsd
    from efficient_medsam2.networks.model_folder import load_runner, save_model
    from efficient_medsam2.networks.options import RunnerOptions
    from efficient_medsam2.networks.records import (
        MemoryEntry,
        Prompts,
        SliceFeatures,
        SliceRecord,
        boxes_to_prompts,
    )
    from efficient_medsam2.networks.runner import SliceRunner
    from efficient_medsam2.networks.student import StudentConfig, build_student
    from efficient_medsam2.predictor import VolumePredictor

__all__ = [
    "Case",
    "CaseList",
    "DataError",
    "EfficientMedSAM2Error",
    "IntensityConfig",
    "MemoryEntry",
    "MissingExtraError",
    "NetworkConfigError",
    "Prompts",
    "RunnerOptions",
    "SliceFeatures",
    "SliceRecord",
    "SliceRunner",
    "StudentConfig",
    "VolumePredictor",
    "WeightsError",
    "boxes_to_prompts",
    "build_student",
    "dsc",
    "find_cases",
    "load_runner",
    "nsd",
    "official_nsd",
    "save_model",
    "to_uint8",
    "write_label",
]

_MODULES = {
    "Case": "images.case",
    "CaseList": "images.source",
    "IntensityConfig": "images.intensity",
    "MemoryEntry": "networks.records",
    "Prompts": "networks.records",
    "RunnerOptions": "networks.options",
    "SliceFeatures": "networks.records",
    "SliceRecord": "networks.records",
    "SliceRunner": "networks.runner",
    "StudentConfig": "networks.student",
    "VolumePredictor": "predictor",
    "boxes_to_prompts": "networks.records",
    "build_student": "networks.student",
    "dsc": "metrics",
    "find_cases": "images.find",
    "load_runner": "networks.model_folder",
    "nsd": "metrics",
    "official_nsd": "metrics",
    "save_model": "networks.model_folder",
    "to_uint8": "images.intensity",
    "write_label": "images.write",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Load a public name from the module that owns it (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
