"""The composed configuration and the presets that come with it."""

import json

import pytest

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.presets import PRESETS, preset_names
from pipeline.stage_graph import build_graph


def test_presets_of_the_demo_exist():
    assert {"demo", "phantom"} <= set(preset_names(PRESETS))


@pytest.mark.parametrize("name", preset_names(PRESETS))
def test_every_preset_loads_and_gives_stages(name):
    config = load_config(name)
    graph = build_graph(config)
    assert graph[-1].name == "evaluate"
    assert config.cache_folder.is_relative_to(config.run.dir) or config.cache.path is not None
    for node in graph:
        json.dumps(dict(node.settings), allow_nan=False)


def test_overrides_reach_their_block():
    config = load_config("phantom", ["run.seed=7", "encoder.learning_rate=5e-4"])
    assert config.run.seed == 7
    assert config.encoder.learning_rate == 5e-4


def test_unknown_key_is_refused():
    with pytest.raises(ConfigError, match=r"did you mean encoder\.learning_rate"):
        load_config("phantom", ["encoder.learning_rat=1"])
