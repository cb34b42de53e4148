"""Reading configs: presets, extends, overrides, and every message a user can meet."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from pipeline.config_file import known_keys, load, parse_override, resolve
from pipeline.errors import ConfigError
from pipeline.presets import preset_names


class Encoder(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(default=1e-3, gt=0)
    steps: int = 1000
    precision: Literal["no", "bf16"] = "no"
    fractions: tuple[float, ...] = (1.0,)


class Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    split: dict[str, float] = {"train": 0.8}


class Whole(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Data
    encoder: Encoder
    spare: Encoder | None = None


@pytest.fixture
def presets(tmp_path: Path) -> Path:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "laptop.yaml").write_text(
        "data:\n  source: folder\nencoder:\n  learning_rate: 1e-4\n  steps: 20\n"
    )
    (folder / "tiny.yaml").write_text("extends: laptop\nencoder:\n  steps: 2\n")
    return folder


def load_text(presets: Path, text: str, *overrides: str) -> Whole:
    path = presets.parent / "my.yaml"
    path.write_text(text)
    return load(Whole, path, overrides, presets=presets)


def failure(presets: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_text(presets, text, *overrides)
    return str(caught.value)


def test_preset_is_found_by_name_by_path_and_from_elsewhere(presets, monkeypatch, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for name in ("laptop", "configs/laptop.yaml", "laptop.yaml", presets / "laptop.yaml"):
        assert resolve(name, presets=presets) == presets / "laptop.yaml"


def test_a_file_of_the_user_comes_before_a_preset(presets, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("laptop").write_text("data: {source: mine}")
    assert load(Whole, "laptop", presets=presets).data.source == "mine"


def test_missing_config_names_the_presets_and_the_nearest(presets):
    with pytest.raises(ConfigError, match=r"no config 'labtop'.*mean laptop\?.*laptop, tiny"):
        resolve("labtop", presets=presets)
    with pytest.raises(ConfigError, match="holds no preset"):
        resolve("x", presets=presets / "nowhere")
    assert preset_names(presets) == ("laptop", "tiny")


def test_extends_merges_deeply(presets):
    config = load(Whole, "tiny", presets=presets)
    assert (config.encoder.steps, config.encoder.learning_rate) == (2, 1e-4)
    assert load_text(presets, "extends: tiny\ndata: {source: b}").encoder.steps == 2


def test_extends_finds_a_file_beside_the_one_that_extends(presets):
    (presets.parent / "base.yaml").write_text("data: {source: beside}")
    assert load_text(presets, "extends: base.yaml").data.source == "beside"


def test_extends_in_a_circle_or_of_no_name(presets):
    assert "circle" in failure(presets, "extends: my.yaml")
    assert "must name one preset" in failure(presets, "extends: [laptop, tiny]")


def test_overrides_are_yaml_and_come_last(presets):
    config = load_text(
        presets,
        "extends: laptop",
        "encoder.learning_rate=1e-2",
        "encoder.fractions=[1.0, 0.1]",
        "data.split.train=0.5",
        "spare.steps=7",
        "encoder.steps=1",
        "encoder.steps=3",
    )
    assert config.encoder == Encoder(learning_rate=0.01, steps=3, fractions=(1.0, 0.1))
    assert config.data.split == {"train": 0.5}
    assert config.spare == Encoder(steps=7)


@pytest.mark.parametrize("text", ["1e-4", "2.5E+3", "-1e5", ".5e1"])
def test_exponents_without_a_dot_are_numbers(text):
    _, value = parse_override(f"a.b={text}")
    assert value == float(text)
    assert isinstance(value, float)


@pytest.mark.parametrize("text", ["e4", "1e", "run1e4x", "1-e4"])
def test_texts_that_look_like_exponents_stay_texts(text):
    assert parse_override(f"a={text}") == (("a",), text)


@pytest.mark.parametrize("text", ["encoder.steps", "=3", "a..b=3", ".a=1"])
def test_override_without_key_or_value(text):
    with pytest.raises(ConfigError, match="expected key=value"):
        parse_override(text)


def test_override_that_is_no_yaml():
    with pytest.raises(ConfigError, match=r"no YAML.*quote it"):
        parse_override("a=[1, 2")


def test_override_below_a_plain_value(presets):
    message = failure(presets, "extends: laptop", "encoder.steps.more=3")
    assert "encoder.steps is 20, it has no keys below it" in message


def test_unknown_key_names_place_and_nearest(presets):
    message = failure(presets, "extends: laptop\nencoder:\n  learning_rat: 1e-3\n")
    assert "unknown key encoder.learning_rat" in message
    assert "my.yaml:3" in message
    assert "did you mean encoder.learning_rate?" in message
    assert "known keys of encoder: learning_rate, steps, precision, fractions" in message


def test_unknown_key_in_the_wrong_block_names_the_right_one(presets):
    message = failure(presets, "extends: laptop", "learning_rate=3")
    assert "unknown key learning_rate (--set learning_rate=3)" in message
    assert "encoder.learning_rate" in message
    assert "known keys: data, encoder, spare" in message


def test_unknown_key_of_a_base_names_the_base(presets):
    (presets / "bad.yaml").write_text("extends: laptop\nencodr: {}\n")
    message = failure(presets, "extends: bad")
    assert "bad.yaml:2" in message
    assert "did you mean encoder?" in message


def test_wrong_type_names_key_value_place_and_expected(presets):
    message = failure(presets, "extends: laptop\nencoder:\n  steps: many\n")
    assert message.startswith("encoder.steps = 'many' (")
    assert "my.yaml:3): expected a valid integer" in message


def test_wrong_choice_and_bound(presets):
    message = failure(
        presets, "extends: laptop", "encoder.precision=fp64", "encoder.learning_rate=0"
    )
    assert "encoder.precision = 'fp64' (--set encoder.precision=fp64): expected 'no' or" in message
    assert "encoder.learning_rate = 0 (--set encoder.learning_rate=0): expected greater" in message


def test_missing_required_key_says_how_to_give_it(presets):
    assert failure(presets, "encoder:\n") == (
        "data.source is required: put it into the config file or give --set data.source=..."
    )


def test_empty_block_is_a_block_of_defaults(presets):
    assert load_text(presets, "data: {source: a}\nencoder:\n").encoder == Encoder()


def test_no_yaml_duplicate_key_list_and_unreadable(presets):
    assert "no valid YAML" in failure(presets, "a: [1")
    assert "key 'steps' is given twice" in failure(presets, "encoder:\n  steps: 1\n  steps: 2\n")
    assert "expected `key: value` lines" in failure(presets, "- 1\n")
    path = presets.parent / "latin.yaml"
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(Whole, path, presets=presets)


def test_known_keys_go_into_blocks():
    assert known_keys(Whole)[:3] == ("data", "data.source", "data.split")
    assert "spare.steps" in known_keys(Whole)


def test_config_errors_exit_2():
    assert ConfigError.exit_code == 2
