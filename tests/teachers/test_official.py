import torch
from transformers import Sam2VideoModel

from efficient_medsam2.networks.hiera import official_config
from efficient_medsam2.teachers.official import from_official
from tests.networks import golden


def test_every_official_name_finds_its_place_and_shape():
    state = {name: torch.empty(shape, device="meta") for name, shape in golden.shapes().items()}
    renamed = from_official(state)
    with torch.device("meta"):
        wanted = Sam2VideoModel(official_config()).state_dict()
    assert len(state) == 471
    assert renamed.keys() == wanted.keys()
    assert {name: value.shape for name, value in renamed.items()} == {
        name: value.shape for name, value in wanted.items()
    }


def test_point_embeddings_are_stacked_in_order_of_their_number():
    state = {
        f"sam_prompt_encoder.point_embeddings.{index}.weight": torch.full((1, 2), float(index))
        for index in (2, 0, 3, 1)
    }
    stacked = from_official(state)["prompt_encoder.point_embed.weight"]
    assert stacked[:, 0].tolist() == [0, 1, 2, 3]


def test_one_gaussian_matrix_serves_image_and_prompts():
    matrix = torch.randn(2, 4)
    name = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    renamed = from_official({name: matrix})
    assert set(renamed) == {
        "shared_image_embedding.positional_embedding",
        "prompt_encoder.shared_embedding.positional_embedding",
    }
    one, other = renamed.values()
    assert torch.equal(one, matrix)
    assert torch.equal(other, matrix)
    assert one.data_ptr() != other.data_ptr()


def test_unknown_names_are_kept_so_that_the_loader_can_refuse_them():
    assert set(from_official({"image_encoder.adapter": torch.zeros(1)})) == {
        "image_encoder.adapter"
    }
