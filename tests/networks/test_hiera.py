import pytest
import torch
from pydantic import ValidationError
from transformers import Sam2VideoModel

from efficient_medsam2.networks.hiera import (
    SmallNetConfig,
    attention_window,
    new_model,
    official_config,
    small_config,
)
from efficient_medsam2.networks.runner import SliceRunner
from tests.networks.tiny import TINY


def test_official_network_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = Sam2VideoModel(official_config())
    # 38 962 754 with the one Gaussian buffer (2 x 128) that is no parameter here.
    assert sum(value.numel() for value in model.parameters()) == 38_962_754 - 256
    assert model.config.image_size == 512
    assert model.prompt_encoder.image_embedding_size == (32, 32)


@pytest.mark.parametrize("size", [64, 96, 128, 192, 256])
def test_small_networks_run_at_every_size(size):
    runner = SliceRunner(
        new_model(
            small_config(
                SmallNetConfig(image_size=size, hidden_size=64, embed_dims=(8, 16, 24, 32))
            )
        ).eval()
    )
    with torch.no_grad():
        features = runner.encode(torch.zeros(1, 3, size, size))
    assert [level.shape[-1] for level in (features.s4, features.s8, features.s16)] == [
        size // 4,
        size // 8,
        size // 16,
    ]


@pytest.mark.parametrize(("side", "window"), [(32, 8), (30, 10), (16, 8), (7, 7), (2, 2), (6, 6)])
def test_windows_tile_the_grid(side, window):
    assert attention_window(side) == window


def test_prompts_and_image_share_their_coordinates():
    model = new_model(small_config(TINY))
    image = model.shared_image_embedding.positional_embedding
    assert torch.equal(image, model.prompt_encoder.shared_embedding.positional_embedding)
    assert image.std() > 0.5
    raw = Sam2VideoModel(small_config(TINY))
    assert not torch.equal(
        raw.shared_image_embedding.positional_embedding,
        raw.prompt_encoder.shared_embedding.positional_embedding,
    )


def test_a_fresh_network_can_learn_its_memory_and_expects_the_object():
    model = new_model(small_config(TINY))
    assert all((layer.scale == 0.1).all() for layer in model.memory_encoder.memory_fuser.layers)
    assert model.mask_decoder.pred_obj_score_head.proj_out.bias.item() == 2.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 100},
        {"hidden_size": 96},
        {"memory_layers": 0},
        {"memory_slices": 0},
        {"blocks": (1, 1, 1)},
        {"width": 3},
    ],
)
def test_networks_that_cannot_be_built_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        SmallNetConfig(**wrong)
