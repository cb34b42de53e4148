import json

import pytest
from pydantic import ValidationError

from pipeline.config import Config
from pipeline.config_file import known_keys, load
from pipeline.errors import ConfigError
from stages.cache_settings import CacheConfig, LevelTypes, PrecomputeConfig, settings_of_cache
from stages.cases import DataConfig


def identity(**cache):
    settings = settings_of_cache(
        DataConfig(source="phantom"), CacheConfig(**cache), PrecomputeConfig()
    )
    return settings["cache.dtype"]


def test_one_word_stands_for_all_levels_and_keeps_its_identity():
    assert identity() == identity(dtype="fp16") == "fp16"
    assert identity(dtype="int8") == "int8"
    words = dict.fromkeys(("s4", "s8", "s16", "logits", "tracks"), "bf16")
    assert identity(dtype=words) == "bf16"
    assert CacheConfig(dtype=words) == CacheConfig(dtype="bf16")
    assert CacheConfig().model_dump(mode="json")["dtype"] == "fp16"


def test_levels_of_their_own():
    mixed = CacheConfig(dtype={"s4": "int8", "tracks": "bf16"})
    wanted = {"s4": "int8", "s8": "fp16", "s16": "fp16", "logits": "fp16", "tracks": "bf16"}
    assert identity(dtype=mixed.dtype) == mixed.dtype.by_level() == wanted
    assert mixed.dtype.of("s4") == "int8"
    again = CacheConfig.model_validate(json.loads(mixed.model_dump_json()))
    assert again == mixed


def test_wrong_words_and_levels_are_named():
    with pytest.raises(ValidationError, match="expected one of fp16, bf16, fp32, int8, or a map"):
        LevelTypes.model_validate("fp8")
    with pytest.raises(ValidationError, match="s32"):
        LevelTypes.model_validate({"s32": "fp16"})


def test_the_config_file_knows_the_levels(tmp_path):
    assert "cache.dtype.s16" in known_keys(Config)
    file = tmp_path / "mine.yaml"
    file.write_text("cache: {dtype: fp32}\n")
    with pytest.raises(ConfigError, match=r"cache\.dtype = 'fp8'.*fp16, bf16, fp32, int8"):
        load(Config, file, ["cache.dtype=fp8"], presets=tmp_path)
    with pytest.raises(ConfigError, match=r"unknown key cache\.dtype\.s5.*: s4, s8, s16"):
        load(Config, file, ["cache.dtype={s5: int8}"], presets=tmp_path)
