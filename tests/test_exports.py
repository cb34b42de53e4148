import subprocess
import sys
from pathlib import Path

import pytest

import efficient_medsam2
from efficient_medsam2 import errors
from efficient_medsam2.errors import EfficientMedSAM2Error

ROOT = Path(__file__).parents[1]


def test_public_names_are_pinned():
    assert sorted(efficient_medsam2.__all__) == [
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


@pytest.mark.parametrize("name", efficient_medsam2.__all__)
def test_every_public_name_loads_and_is_listed(name):
    assert getattr(efficient_medsam2, name).__name__ == name
    assert name in dir(efficient_medsam2)


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="'efficient_medsam2' has no attribute 'predict'"):
        _ = efficient_medsam2.predict


@pytest.mark.parametrize("module", ["efficient_medsam2", "efficient_medsam2.errors"])
def test_importing_the_package_does_not_load_torch(module):
    script = f"import sys, {module}; sys.exit(bool({{'torch', 'numpy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_exit_codes():
    codes = {name: getattr(errors, name).exit_code for name in errors.__all__}
    assert codes == {
        "EfficientMedSAM2Error": 1,
        "DataError": 3,
        "NetworkConfigError": 2,
        "WeightsError": 7,
        "MissingExtraError": 7,
    }
    assert all(issubclass(getattr(errors, name), EfficientMedSAM2Error) for name in errors.__all__)
