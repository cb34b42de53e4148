"""A student's input may be augmented photometrically alone."""

import pytest
from pydantic import ValidationError

from pipeline.config import Config
from pipeline.config_file import load
from pipeline.errors import ConfigError
from pipeline.presets import PRESETS
from stages.distill_encoder import EncoderConfig
from stages.training.settings import LoopConfig

KEYS = ["flip", "hflip", "vertical_flip", "rotate", "rotate_degrees", "rotation_range", "crop"]
KEYS += ["random_crop", "shift", "scale", "shift_scale_rotate", "elastic", "affine", "translate"]
KEYS += ["random_affine", "mixup", "cutmix", "mosaic", "zoom"]


@pytest.mark.parametrize("key", KEYS)
def test_geometric_augmentation_is_refused_with_the_reason(key):
    with pytest.raises(ValidationError, match=rf"{key}: geometric.*precompute\.views\.count=4"):
        LoopConfig(**{key: 0.5})


def test_it_is_refused_inside_other_keys_too():
    with pytest.raises(ValidationError, match=r"augment\.flip, augment\.more\.crop: geometric"):
        EncoderConfig(augment={"flip": True, "more": {"crop": 3}, "gamma": 1})


@pytest.mark.parametrize("key", ["augmentation", "learning_rate_scale", "flipped_lr", "shares"])
def test_other_unknown_keys_are_refused_as_ever(key):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        LoopConfig(**{key: 1})


def test_photometric_augmentation_is_free():
    assert EncoderConfig(augment=0.9).augment == 0.9


@pytest.mark.parametrize("block", ["encoder", "memory", "finetune", "baseline"])
def test_the_refusal_reaches_the_user_of_every_student_stage(block):
    with pytest.raises(ConfigError, match=rf"^{block} .*rotate: .*cosine of 0\.87.*views") as found:
        load(Config, "laptop", [f"{block}.rotate=10"], presets=PRESETS)
    assert found.value.exit_code == 2
