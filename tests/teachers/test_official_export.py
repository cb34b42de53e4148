import hashlib

import pytest
import torch
from transformers import Sam2VideoModel

from efficient_medsam2.errors import NetworkConfigError
from efficient_medsam2.networks.hiera import SAM2_SIZES, official_config
from efficient_medsam2.networks.runner import SliceRunner
from efficient_medsam2.networks.student import StudentConfig, build_student
from efficient_medsam2.teachers.official import from_official
from efficient_medsam2.teachers.official_export import (
    official_shapes,
    save_official,
    size_of_shapes,
    to_official,
)
from tests.networks import golden
from tests.networks.tiny import tiny_runner

# SHA-256 of the sorted "name [shape]" lines of SAM2Base's state dict, built by
# facebookresearch/sam2 at 2b90b9f from sam2.1_hiera_*.yaml; and its number of entries.
OFFICIAL = {
    "t": (471, "aa97d3d723e3d9a274fafe9acc485268e11cfbd8f8906f147bd0966ea5a67ec9"),
    "s": (519, "3bfa6b62d57cfb99196f6fdbf1fad40176b4c21ef18c8cf761c21082e8300909"),
    "b+": (615, "3306e68a5090c989ce9495f712ed93942de79abd2f18b4686a66f2760eb5d0b2"),
    "l": (903, "e80150164c9113ced6aebba005c54086720f89e4608bd3d495c95af8ffa276ba"),
}


@pytest.mark.parametrize("size", SAM2_SIZES)
def test_every_size_has_the_official_names_and_shapes(size):
    shapes = official_shapes(size)
    lines = "\n".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
    assert (len(shapes), hashlib.sha256(lines.encode()).hexdigest()) == OFFICIAL[size]
    assert size_of_shapes(shapes) == size
    there = from_official({n: torch.empty(s, device="meta") for n, s in shapes.items()})
    with torch.device("meta"):
        wanted = Sam2VideoModel(official_config(size, 256)).state_dict()
    assert {n: v.shape for n, v in there.items()} == {n: v.shape for n, v in wanted.items()}


def test_there_and_back_keeps_every_bit():
    state = golden.state_dict()
    back = to_official(from_official(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_two_position_codes_have_no_place_in_an_official_file():
    codes = {
        "shared_image_embedding.positional_embedding": torch.zeros(2, 4),
        "prompt_encoder.shared_embedding.positional_embedding": torch.ones(2, 4),
    }
    with pytest.raises(NetworkConfigError, match="one position code"):
        to_official(codes)


def test_another_width_is_no_official_size():
    shapes = official_shapes("t") | {"image_encoder.trunk.patch_embed.proj.weight": (48, 3, 7, 7)}
    assert size_of_shapes(shapes) is None
    assert size_of_shapes({}) is None


def test_small_networks_and_other_suffixes_are_refused(tmp_path):
    with pytest.raises(NetworkConfigError, match=r"of none of SAM 2\.1's sizes \(t, s, b\+, l\)"):
        save_official(tiny_runner(), tmp_path / "a.pt")
    with pytest.raises(NetworkConfigError, match=r"\.pt, \.pth and \.safetensors"):
        save_official(tiny_runner(), tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())


def test_a_student_with_a_timm_backbone_is_refused(tmp_path):
    teacher = tiny_runner()
    config = StudentConfig(backbone="mobilenetv3_small_100", pretrained=False, memory_layers=1)
    model = build_student(config, teacher.config, teacher.model.state_dict(), seed=0)
    message = "image encoder is mobilenetv3_small_100, not SAM 2.1's Hiera"
    with pytest.raises(NetworkConfigError, match=message):
        save_official(SliceRunner(model), tmp_path / "a.pt")
