import math

import pytest
import torch

from efficient_medsam2.networks.memory_attention import attend, attend_pooled
from efficient_medsam2.networks.memory_tokens import memory_tokens
from efficient_medsam2.networks.options import RunnerOptions
from efficient_medsam2.networks.runner import SliceRunner
from tests.networks.tiny import SIZE, remembered, tiny_model

GRID = SIZE // 16


@pytest.fixture
def bank(features):
    return [
        remembered(features, position=0, prompted=True),
        *(remembered(features, position=position) for position in (1, 2)),
    ]


def inputs(runner, features, bank, *, pool):
    seen = memory_tokens(runner.model, bank, position=3, reverse=False, num_frames=8, pool=pool)
    code = runner.model.vision_encoder.neck.position_encoding(
        features.s16.shape, features.s16.device, features.s16.dtype
    )
    flat = [maps.flatten(2).permute(2, 0, 1) for maps in (features.s16, code)]
    return (runner.model, *flat, seen)


@torch.no_grad()
def test_without_pooling_it_is_the_attention_of_transformers(runner, features, bank):
    given = inputs(runner, features, bank, pool=1)
    torch.testing.assert_close(attend_pooled(*given, pool=1), attend(*given))


@torch.no_grad()
def test_tokens_are_means_of_squares_and_pointers_stay(runner, features, bank):
    whole = inputs(runner, features, bank, pool=1)[-1]
    pooled = inputs(runner, features, bank, pool=2)[-1]
    cells, squares = GRID**2, (GRID // 2) ** 2
    assert pooled.pointers == whole.pointers
    assert len(pooled.tokens_MBC) == 3 * squares + pooled.pointers
    for name in ("tokens_MBC", "codes_MBC"):
        fine, coarse = getattr(whole, name), getattr(pooled, name)
        first = [row * GRID + column for row in (0, 1) for column in (2, 3)]
        torch.testing.assert_close(coarse[1], fine[first].mean(0))
        last = [2 * cells + row * GRID + column for row in (2, 3) for column in (0, 1)]
        torch.testing.assert_close(coarse[2 * squares + 2], fine[last].mean(0))
        assert torch.equal(coarse[-pooled.pointers :], fine[-whole.pointers :])


@torch.no_grad()
def test_a_token_weighs_as_much_as_its_cells(runner, features, bank):
    """Against the whole attention with each square's token once for each of its cells."""
    model, slice_, code, seen = inputs(runner, features, bank, pool=2)
    for layer in model.memory_attention.layers:
        # Keys without rotation: a square's cells differ in nothing else.
        layer.cross_attn_image.q_proj.weight.zero_()
        layer.cross_attn_image.q_proj.bias.zero_()
    spatial = len(seen.tokens_MBC) - seen.pointers
    pick = [*(token for token in range(spatial) for _ in range(4)), *range(spatial, spatial + 3)]
    repeated = type(seen)(
        tokens_MBC=seen.tokens_MBC[pick], codes_MBC=seen.codes_MBC[pick], pointers=seen.pointers
    )
    torch.testing.assert_close(
        attend_pooled(model, slice_, code, seen, pool=2), attend(model, slice_, code, repeated)
    )


@torch.no_grad()
def test_keys_are_rotated_to_the_middles_of_their_squares(runner, features, bank):
    """By hand, with one head: rotary angles of the mean position, log 4 on the squares' logits."""
    model, slice_, code, seen = inputs(runner, features, bank, pool=2)
    model.memory_attention.layers = model.memory_attention.layers[:1]
    attention, layer = model.memory_attention, model.memory_attention.layers[0]
    got = attend_pooled(model, slice_, code, seen, pool=2)

    cross = layer.cross_attn_image
    output = (slice_ + 0.1 * code).transpose(0, 1).unsqueeze(1)
    query = layer.layer_norm1(output)
    rotation = attention.rotary_emb(output, attention.position_ids)
    output = output + layer.self_attn(query, query, query, position_embeddings=rotation)[0]
    tokens, codes = seen.tokens_MBC.transpose(0, 1), seen.codes_MBC.transpose(0, 1)
    spatial = tokens.shape[1] - seen.pointers

    def turned(vectors, positions):
        pairs = torch.view_as_complex(vectors.reshape(*vectors.shape[:-1], -1, 2).contiguous())
        frequencies = 10000 ** -(torch.arange(0, pairs.shape[-1] // 2) * 2 / pairs.shape[-1])
        angles = torch.cat([positions[:, [axis]] * frequencies for axis in (0, 1)], dim=1)
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)

    cells = torch.tensor([[x, y] for y in range(GRID) for x in range(GRID)], dtype=torch.float)
    middles = torch.tensor([[x + 0.5, y + 0.5] for y in (0, 2) for x in (0, 2)])
    queries = turned(cross.q_proj(layer.layer_norm2(output)[:, 0]), cells)
    keys = cross.k_proj(tokens + codes)
    keys = torch.cat([turned(keys[:, :spatial], middles.repeat(3, 1)), keys[:, spatial:]], 1)
    logits = queries @ keys.transpose(1, 2) / math.sqrt(keys.shape[-1])
    logits[..., :spatial] += math.log(4)
    output = output[:, 0] + cross.o_proj(logits.softmax(-1) @ cross.v_proj(tokens))
    hidden = layer.activation(layer.linear1(layer.layer_norm3(output)))
    expected = attention.layer_norm(output + layer.linear2(hidden))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_runner_pools_as_its_options_say(features, bank):
    model = tiny_model()
    where = {"position": 3, "reverse": False, "num_frames": 8}
    whole = SliceRunner(model).condition(features.s16, bank, **where)
    pooled = SliceRunner(model, RunnerOptions(memory_pool=2)).condition(features.s16, bank, **where)
    given = inputs(SliceRunner(model), features, bank, pool=2)
    expected = attend_pooled(*given, pool=2).transpose(1, 2).reshape(features.s16.shape)
    assert torch.equal(pooled, expected)
    assert not torch.allclose(pooled, whole)


def test_gradients_reach_memories_pointers_and_features(runner, features, bank):
    for entry in bank:
        entry.memory.requires_grad_()
        entry.object_pointer.requires_grad_()
    source = features.s16.clone().requires_grad_()
    pooling = SliceRunner(runner.model, RunnerOptions(memory_pool=2))
    pooling.condition(source, bank, position=3, reverse=False, num_frames=8).sum().backward()
    for tensor in (source, *(entry.memory for entry in bank), bank[0].object_pointer):
        assert tensor.grad.abs().sum() > 0
