import pytest
import torch

from efficient_medsam2.networks.hiera import SmallNetConfig, new_model, small_config
from efficient_medsam2.networks.memory_tokens import memory_tokens
from efficient_medsam2.networks.records import MemoryEntry
from tests.networks.tiny import remembered

GRID = 16
"""Tokens of one memory: 4 x 4 at 64 px."""


def tokens(runner, bank, **changes):
    where = {"position": 3, "reverse": False, "num_frames": 8} | changes
    with torch.no_grad():
        return memory_tokens(runner.model, bank, **where)


@pytest.fixture
def bank(features):
    return [
        remembered(features, position=0, prompted=True),
        *(remembered(features, position=position) for position in (1, 2)),
    ]


def test_prompted_slice_then_recent_slices_then_pointers(runner, features, bank):
    seen = tokens(runner, bank)
    assert seen.tokens_MBC.shape == seen.codes_MBC.shape == (3 * GRID + 3, 2, 64)
    assert seen.pointers == 3
    memories = seen.tokens_MBC[: 3 * GRID].reshape(3, GRID, 2, 64)
    for place, entry in enumerate(bank):
        assert torch.equal(memories[place], entry.memory.flatten(2).permute(2, 0, 1))
    nearest_first = [bank[0], bank[2], bank[1]]
    assert torch.equal(
        seen.tokens_MBC[-3:], torch.stack([entry.object_pointer for entry in nearest_first])
    )


def test_temporal_codes_count_back_from_the_slice(runner, bank):
    codes = tokens(runner, bank).codes_MBC[: 3 * GRID].reshape(3, GRID, 2, 64)
    temporal = runner.model.memory_temporal_positional_encoding[:, 0, 0]
    # The prompted slice has the last code; slice 1 is two steps back, slice 2 one step.
    for place, code in ((1, 1), (2, 0)):
        difference = codes[place] - codes[0]
        expected = (temporal[code] - temporal[-1]).expand_as(difference)
        torch.testing.assert_close(difference, expected)


def test_order_of_the_bank_does_not_matter(runner, bank):
    seen, shuffled = tokens(runner, bank), tokens(runner, [bank[2], bank[0], bank[1]])
    assert torch.equal(seen.tokens_MBC, shuffled.tokens_MBC)
    assert torch.equal(seen.codes_MBC, shuffled.codes_MBC)


def test_memories_have_a_shorter_reach_than_pointers(runner, features):
    bank = [remembered(features, position=p, prompted=p == 0) for p in range(12)]
    seen = tokens(runner, bank, position=12, num_frames=20)
    # 1 prompted + 3 recent memories (memory_slices = 4); 1 prompted + 7 recent pointers (of 8).
    assert seen.pointers == 8
    assert len(seen.tokens_MBC) == 4 * GRID + 8
    short = tokens(runner, bank, position=12, num_frames=3)
    assert short.pointers == 3


def test_time_code_of_pointers_is_scaled_by_the_sequence(runner, bank):
    long, short = tokens(runner, bank, num_frames=8), tokens(runner, bank, num_frames=4)
    assert torch.equal(long.tokens_MBC, short.tokens_MBC)
    assert torch.equal(long.codes_MBC[: 3 * GRID], short.codes_MBC[: 3 * GRID])
    assert not torch.allclose(long.codes_MBC[-3:], short.codes_MBC[-3:])
    # Beyond the pointers' reach (8 here) the length of the sequence is no longer seen.
    assert torch.equal(long.codes_MBC, tokens(runner, bank, num_frames=50).codes_MBC)


def test_a_single_frame_does_not_divide_by_zero(runner, bank):
    seen = tokens(runner, bank[:1], position=1, num_frames=1)
    assert seen.codes_MBC.isfinite().all()


def test_a_prompted_slice_to_come_gives_its_memory_but_no_pointer(runner, features, bank):
    later = remembered(features, position=6, prompted=True)
    seen = tokens(runner, [*bank, later])
    assert seen.pointers == 3
    assert len(seen.tokens_MBC) == 4 * GRID + 3
    alone = tokens(runner, [later])
    assert alone.pointers == 0
    assert torch.equal(alone.tokens_MBC, later.memory.flatten(2).permute(2, 0, 1))


def test_slices_of_the_other_direction_are_not_seen(runner, features, bank):
    seen = tokens(runner, bank)
    ahead = tokens(runner, [*bank, remembered(features, position=4)])
    assert torch.equal(seen.tokens_MBC, ahead.tokens_MBC)


def test_pointers_wider_than_the_memory_are_cut():
    config = small_config(
        SmallNetConfig(
            image_size=64, hidden_size=128, embed_dims=(8, 16, 24, 32), blocks=(1, 1, 1, 1)
        )
    )
    entry = MemoryEntry(
        position=0,
        prompted=True,
        memory=torch.randn(2, 64, 4, 4),
        object_pointer=torch.arange(256.0).reshape(2, 128),
    )
    with torch.no_grad():
        seen = memory_tokens(new_model(config), [entry], position=1, reverse=False, num_frames=2)
    assert seen.pointers == 2
    assert torch.equal(seen.tokens_MBC[-2:, 1], torch.arange(128.0, 256).reshape(2, 64))


@pytest.mark.parametrize("positions", [[], [4, 5]])
def test_nothing_within_reach_is_refused(runner, features, positions):
    bank = [remembered(features, position=position) for position in positions]
    with pytest.raises(ValueError, match=r"slice 3: no memory within reach.*prompt a slice first"):
        tokens(runner, bank)
