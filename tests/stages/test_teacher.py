"""The small teacher: its batches, its running average and its validation."""

import importlib.util

import numpy as np
import pytest
import torch

from efficient_medsam2.networks.model_folder import load_runner
from efficient_medsam2.networks.records import SliceFeatures
from stages.teacher_batches import TeacherBatches
from stages.teacher_data import KINDS, real_volumes
from stages.teacher_heads import DenseHeads
from stages.teacher_settings import TrainTeacherConfig
from stages.teacher_validation import validate_teacher
from stages.train_teacher import TeacherModule
from stages.training.windows import LabelledVolume, cut_window, visible_objects
from tests.end_to_end import files, small
from tests.stages.training.test_batches import assert_same

needs_nilearn = pytest.mark.skipif(
    importlib.util.find_spec("nilearn") is None, reason="nilearn, which bundles it, is missing"
)

CONFIG = TrainTeacherConfig(
    steps=10,
    batch_size=2,
    network=small.NETWORK,
    window=3,
    stills=2,
    pool=2,
    real="none",
    tracks_from=0.5,
    tracks_grown=0.5,
    track_every=1,
    prompts_per_slice=2,
    refined_share=0.5,
    average_over=4,
)


def test_a_batch_is_a_pure_function_of_its_number():
    batches = [TeacherBatches(CONFIG, 1)(number) for number in (0, 6)]
    stream = TeacherBatches(CONFIG, 1)
    for number, expected in ((6, batches[1]), (0, batches[0])):
        assert_same(stream(number), expected)
    assert not torch.equal(TeacherBatches(CONFIG, 2)(0).pixels, batches[0].pixels)


def test_tracks_join_after_their_share_of_the_steps():
    stream = TeacherBatches(CONFIG, 1)
    assert stream(4).track_prompts is None
    later = stream(6)
    assert later.track_prompts is not None
    assert later.track_slices.shape[1] == 3
    first = later.track_slices[0].tolist()
    assert first in ([0, 1, 2], [3, 4, 5])
    doubled = CONFIG.model_copy(update={"accumulate": 2})
    assert TeacherBatches(doubled, 1)(6).track_prompts is None  # batch 6 belongs to step 3


def test_tracks_begin_as_pairs_and_grow_at_equal_cost_of_the_encoder():
    config = CONFIG.model_copy(update={"window": 6, "tracks_from": 0.0, "tracks_grown": 0.8})
    stream = TeacherBatches(config, 1)
    batches = [stream(number) for number in (0, 4, 9)]
    assert [batch.track_slices.shape[1] for batch in batches] == [2, 3, 6]
    assert {len(batch.pixels) for batch in batches} == {2 * 6 + 2}


def test_only_every_so_many_a_batch_has_tracks():
    stream = TeacherBatches(CONFIG.model_copy(update={"tracks_from": 0.0, "track_every": 2}), 1)
    batches = [stream(number) for number in range(4)]
    assert [batch.track_prompts is not None for batch in batches] == [True, False, True, False]


def test_prompts_belong_to_objects_that_are_large_enough():
    batch = TeacherBatches(CONFIG, 1)(0)
    assert batch.pixels.shape == (2 * 3 + 2, 3, 64, 64)
    assert (batch.prompt_mask.flatten(1).sum(1) >= CONFIG.smallest).all()
    assert (torch.bincount(batch.prompt_slice, minlength=8) <= 2).all()
    assert batch.refined == len(batch.prompt_mask) // 2
    for index, mask in zip(batch.prompt_slice, batch.prompt_mask, strict=True):
        assert len(batch.label[index][mask > 0].unique()) == 1
    assert (batch.kind == -1).all()


def test_visible_objects_leave_out_the_background_and_the_small():
    label = np.zeros((8, 8), np.int64)
    label[:2] = 3
    label[7, 7] = 5
    assert visible_objects(label, 2).tolist() == [3]
    assert visible_objects(label, 1).tolist() == [3, 5]


@needs_nilearn
def test_real_slabs_know_the_kind_of_their_structures():
    train, validation = real_volumes("train"), real_volumes("validation")
    assert len(train) > len(validation) >= 3
    for volumes in (train, validation):
        seen = {
            volume.kinds[int(each)] for volume in volumes for each in np.unique(volume.label)[1:]
        }
        assert seen == set(KINDS.values())
    assert sum(len(volume.label) for volume in train) > 2 * sum(
        len(volume.label) for volume in validation
    )


@needs_nilearn
def test_rare_kinds_are_drawn_as_often_as_common_ones():
    config = CONFIG.model_copy(
        update={"real": "mni152", "real_from": 0.0, "real_share": 1.0, "batch_size": 1}
    )
    stream = TeacherBatches(config, 1)
    batches = [stream(number) for number in range(8)]
    kinds = torch.cat([batch.kind for batch in batches])
    shows = [(kinds == kind).flatten(1).any(1).float().mean().item() for kind in KINDS.values()]
    assert int(kinds.min()) == 0
    assert min(shows) > 0.15
    for batch in batches:
        assert ((batch.kind > 0) == (batch.label > 0)).all()


@pytest.fixture
def module():
    torch.manual_seed(0)
    return TeacherModule(CONFIG)


def test_the_average_starts_as_the_network_and_follows_it(module):
    for mean, now in zip(module.average.parameters(), module.model.parameters(), strict=True):
        assert torch.equal(mean, now)
    batch = TeacherBatches(CONFIG, 1)(0)
    module.train()
    for _ in range(30):
        module._update_average()
    weight = module.model.mask_decoder.conv_s0.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight += 1
    module(batch)
    moved = module.average.mask_decoder.conv_s0.weight - before
    torch.testing.assert_close(moved, torch.full_like(moved, 0.25))
    module.eval()
    module(batch)
    torch.testing.assert_close(module.average.mask_decoder.conv_s0.weight - before, moved)
    assert int(module.updates) == 31


def test_a_step_gives_every_term_and_reaches_every_trained_part(module):
    module.train()
    module.zero_grad()
    terms = module(TeacherBatches(CONFIG, 1)(6))
    terms["loss"].backward()
    wanted = {"loss", "mask", "iou", "presence", "refined", "edge", "same", "kind"}
    assert set(terms) == wanted | {"track_mask", "track_iou", "track_presence"}
    assert all(torch.isfinite(value) for value in terms.values())
    assert terms["kind"].item() == 0
    parts = ("vision_encoder", "prompt_encoder", "mask_decoder", "memory_attention")
    for part in (*parts, "memory_encoder", "object_pointer_proj"):
        gradients = [p.grad for p in getattr(module.model, part).parameters()]
        assert any(g is not None and bool(g.abs().sum() > 0) for g in gradients), part
    assert all(p.grad is None for p in module.average.parameters())


def test_dense_heads_learn_borders_and_kinds():
    torch.manual_seed(0)
    label = torch.zeros(2, 64, 64, dtype=torch.int64)
    label[:, 16:48, 16:48] = 5
    kind = torch.stack([(label[0] > 0).long(), torch.full_like(label[1], -1)])
    signal = (label > 0).float().unsqueeze(1)
    features = SliceFeatures(
        s4=signal[:, :, ::4, ::4].repeat(1, 8, 1, 1),
        s8=signal[:, :, ::8, ::8].repeat(1, 16, 1, 1),
        s16=signal[:, :, ::16, ::16].repeat(1, 64, 1, 1),
    )
    heads = DenseHeads(64, kinds=2)
    optimizer = torch.optim.Adam(heads.parameters(), lr=0.05)
    first = heads(features, label, kind)
    for _ in range(60):
        optimizer.zero_grad()
        terms = heads(features, label, kind)
        sum(terms.values()).backward()
        optimizer.step()
    assert terms["kind"].item() < 0.1 < first["kind"].item()
    assert all(terms[name].item() < first[name].item() for name in ("edge", "same"))


@pytest.fixture(scope="module")
def runner(blocks):
    return load_runner(blocks.teacher.checkpoint)


def test_validation_gives_both_figures_and_their_mean(runner):
    image, label = files.volume(0)
    figures = validate_teacher(runner, [LabelledVolume(image=image, label=label)], 5)
    assert set(figures) == {"dsc", "dsc_3d", "score"}
    assert figures["score"] == pytest.approx((figures["dsc"] + figures["dsc_3d"]) / 2)
    assert 0 <= figures["score"] <= 1


def test_validation_without_objects_is_a_score_of_zero(runner):
    image, label = files.volume(0)
    nothing = LabelledVolume(image=image, label=label * 0)
    assert validate_teacher(runner, [nothing], 5) == {"dsc": 0.0, "score": 0.0}
    one_slice = label * 0
    one_slice[2] = label[2]
    volume = LabelledVolume(image=image, label=one_slice)
    assert set(validate_teacher(runner, [volume], 5)) == {"dsc", "score"}


def test_validation_tells_kinds_apart_and_weighs_structures_alike(runner):
    image, label = files.volume(0)
    kinds = {int(each): 1 + int(each) % 2 for each in np.unique(label) if each}
    figures = validate_teacher(runner, [LabelledVolume(image=image, label=label, kinds=kinds)], 5)
    named = {key for key in figures if key.startswith("dsc_") and not key.startswith("dsc_3d")}
    assert named
    assert named <= {"dsc_white-matter", "dsc_deep-grey"}
    alike = validate_teacher(runner, [LabelledVolume(image=image, label=label)], 5)
    assert figures["score"] == pytest.approx(alike["score"])


@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 12])
def test_windows_move_image_and_label_alike(depth, strong):
    label = np.zeros((depth, 40, 40), np.uint8)
    label[:, 12:28, 15:30] = 1
    volume = LabelledVolume(image=label * 200, label=label)
    image, mask = cut_window(volume, np.random.default_rng(3), length=4, size=32, strong=strong)
    assert image.shape == mask.shape == (4, 32, 32)
    inside, outside = image[mask == 1].mean(), image[mask == 0].mean()
    middle = (inside + outside) / 2
    assert ((image > middle) == (mask == 1)).float().mean() > 0.97
    again = cut_window(volume, np.random.default_rng(3), length=4, size=32, strong=strong)
    assert torch.equal(again[0], image)
    assert torch.equal(again[1], mask)


@pytest.mark.parametrize("first", [0, 4, 11])
def test_a_window_begins_where_it_is_told(first):
    """Each slice has its own grey value, so the window shows where it went."""
    label = np.zeros((12, 40, 40), np.uint8)
    label[first] = 1
    volume = LabelledVolume(image=label * 200, label=label)
    for seed in range(5):
        generator = np.random.default_rng(seed)
        _, mask = cut_window(volume, generator, length=5, size=32, strong=False, first=first)
        assert (mask[0, 8:24, 8:24] == 1).all()
        assert (mask[1:] == 0).all()
