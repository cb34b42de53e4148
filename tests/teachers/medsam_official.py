"""A SAM 1 network's weights under their official names."""

import torch

from efficient_medsam2.teachers.medsam_names import from_segment_anything
from tests.teachers.medsam_golden import shapes

_GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def official_state(model):
    """Official name → value, for a network with no more layers than ViT-B."""
    here = model.state_dict()
    state = {_GAUSSIAN: here["shared_image_embedding.positional_embedding"]}
    for name in shapes():
        (renamed,) = set(from_segment_anything({name: torch.empty(0)})) - {
            "prompt_encoder.shared_embedding.positional_embedding"
        }
        if renamed in here:
            state[name] = here[renamed]
    return state
