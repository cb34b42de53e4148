"""A cache of MedSAM, and students made from it: everything through the real stages, tiny."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from cache import CacheReader
from cache.dataset import read_slices
from efficient_medsam2.errors import NetworkConfigError
from efficient_medsam2.images import to_network_input
from efficient_medsam2.networks.model_folder import load_network, load_runner
from efficient_medsam2.networks.sam1 import network_input
from efficient_medsam2.networks.student import StudentConfig
from efficient_medsam2.teachers import medsam
from stages import distill_encoder, distill_memory, evaluate, finetune
from stages.distill_encoder import EncoderConfig, EncoderModule, training_rows
from stages.distill_memory import MemoryConfig
from stages.evaluation_settings import EvaluateConfig
from stages.finetune import FinetuneConfig
from stages.row_settings import ViewConfig
from stages.teacher_source import TeacherConfig
from stages.training.heads import TeacherHeads
from stages.training.slice_batches import SliceStream
from stages.training.student import new_student
from tests.networks.tiny_sam1 import SIZE, WIDTH, tiny_sam1, tiny_sam1_config
from tests.stages.conftest import make_cache, make_context
from tests.teachers.medsam_official import official_state

SHORT = {"steps": 2, "batch_size": 4, "log_every": 1}


@pytest.fixture(scope="module")
def medsam_cache(blocks, tmp_path_factory):
    """A cache of the phantom by a tiny network, through the official file's loader."""
    folder = tmp_path_factory.mktemp("medsam")
    torch.save(official_state(tiny_sam1()), folder / "medsam.pth")
    teacher = TeacherConfig(kind="medsam", checkpoint=folder / "medsam.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(medsam, "medsam_config", tiny_sam1_config)
        context = make_cache(dataclasses.replace(blocks, teacher=teacher), folder / "medsam.cache")
    assert any("no memory" in line for line in context.progress.lines)
    return folder / "medsam.cache"


@pytest.fixture(scope="module")
def medsam_reader(medsam_cache):
    return CacheReader(medsam_cache)


def stream(reader, size=None, features=True):
    return SliceStream(
        reader,
        reader.index.select("slices", split="train"),
        batch_size=4,
        prompts_per_slice=2,
        smallest=5,
        box_share=0.5,
        augment=0,
        features=features,
        seed=3,
        size=size,
    )


def test_the_cache_has_one_level_and_no_tracks(medsam_reader):
    names = {array.name: array.shape for array in medsam_reader.spec.arrays}
    assert names["features_s16"] == (WIDTH, SIZE // 16, SIZE // 16)
    assert names["mask_logits"] == (SIZE // 4, SIZE // 4)
    assert not [name for name in names if name.startswith("track_")]
    assert "features_s4" not in names
    assert "features_s8" not in names
    assert medsam_reader.index.counts()["tracks"] == 0
    assert medsam_reader.spec.preprocessing["image_size"] == SIZE


@torch.no_grad()
def test_cached_features_are_the_teachers(medsam_reader):
    network = load_network(medsam_reader.path / "teacher")
    batch = read_slices(medsam_reader, [0, 5], levels=("s16",))
    direct = network.encode(network.network_input(batch.image)).s16
    assert torch.allclose(batch.features.s16.float(), direct, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["medsam", "sam2"])
@torch.no_grad()
def test_masks_for_new_prompts_from_cached_features(kind, medsam_reader, reader):
    """``TeacherHeads.answer`` against the full teacher from the image, for 100 random prompts."""
    cache = medsam_reader if kind == "medsam" else reader
    heads, network = TeacherHeads.of_cache(cache), load_network(cache.path / "teacher")
    make = stream(cache)
    asked, common, either = 0, 0, 0
    for number in range(40):
        batch = make(number)
        rows = batch.slice_of
        # Not augmented, so the cached image is what the batch was made of.
        image = read_slices(cache, make._order.batch(number), levels=()).image
        encoded = network.encode(network_input(network, image))
        full = network.prompted(encoded.take(rows), batch.prompts)
        exact = heads.answer(encoded.take(rows), batch.prompts)
        assert torch.allclose(exact.mask_logits, full.mask_logits, atol=1e-5)
        stored = batch.to(torch.device("cpu")).features.take(rows)
        ours, theirs = heads.answer(stored, batch.prompts).mask_logits > 0, full.mask_logits > 0
        common += 2 * int((ours & theirs).sum())
        either += int(ours.sum()) + int(theirs.sum())
        asked += len(rows)
    assert asked >= 100
    # Over all prompts together: masks of random weights may have a pixel or two.
    assert common / either >= 0.999


def test_a_students_decoder_is_trained_and_a_copied_one_is_not(medsam_cache, cache_path):
    for path, whole in ((medsam_cache, True), (cache_path, False)):
        runner = new_student(StudentConfig(), path, seed=0, device="cpu")
        module = EncoderModule(runner, TeacherHeads.of_cache(CacheReader(path)), EncoderConfig())
        trained = {
            name
            for name, value in module.student.named_parameters()
            if value.requires_grad and not name.startswith("vision_encoder.")
        }
        assert all(name.startswith("mask_decoder.") for name in trained)
        assert ("mask_decoder.iou_token.weight" in trained) == whole
        assert "mask_decoder.conv_s0.weight" in trained


def test_feature_terms_only_where_levels_are_cached(medsam_reader, medsam_cache):
    runner = new_student(StudentConfig(), medsam_cache, seed=0, device="cpu")
    module = EncoderModule(runner, TeacherHeads.of_cache(medsam_reader), EncoderConfig())
    terms = module(stream(medsam_reader)(0))
    assert terms.keys() == {"loss", "s16", "mask"}
    terms["loss"].backward()
    assert module.student.mask_decoder.iou_token.weight.grad is not None
    assert module.student.mask_decoder.conv_s0.weight.grad.any()


@pytest.mark.parametrize(
    "student",
    [StudentConfig(), StudentConfig(image_size=32, resize_targets="area")],
    ids=["same size", "smaller"],
)
def test_encoder_then_finetuning_then_evaluation(student, medsam_cache, blocks, tmp_path):
    def context(name, **inputs):
        (tmp_path / name).mkdir()
        return make_context(tmp_path / name, medsam_cache, inputs=inputs)

    encoder = context("encoder", precompute=medsam_cache)
    distill_encoder.run(student, EncoderConfig(**SHORT), encoder)
    memory = context("memory", encoder=tmp_path / "encoder")
    artifact = distill_memory.run(student, MemoryConfig(**SHORT), memory)
    assert artifact.summary["skipped"] == "no tracks"
    (note,) = memory.progress.lines
    assert "MedSAM, has no memory" in note
    assert "--set teacher.kind=medsam2" in note
    tuned = context("finetune", memory=tmp_path / "memory")
    finetune.run(student, FinetuneConfig(**SHORT), tuned, label_fraction=1.0)
    size = student.image_size or SIZE
    runner = load_runner(tmp_path / "finetune" / "model")
    assert runner.image_size == size

    measured = context("evaluate", precompute=medsam_cache, finetune=tmp_path / "finetune")
    evaluate.run(blocks.data, EvaluateConfig(split="validation", samples=2, limit=1), measured)
    rows = json.loads((tmp_path / "evaluate" / "rows.json").read_text())["rows"]
    teacher, trained = rows
    assert teacher["dsc_3d"] is None
    assert teacher["gflop_tracked"] is None
    assert 0 <= teacher["dsc"] <= 1
    assert trained["dsc_3d"] is not None
    assert trained["retention_3d"] is None
    with np.load(tmp_path / "evaluate" / "samples.npz") as arrays:
        shown = {name for name in arrays.files if name.startswith(("s4_", "s8_", "s16_"))}
        assert {name.split("_")[0] for name in shown} == {"s16"}
        assert arrays["s16_teacher_0"].shape == arrays["s16_finetune_0"].shape


@pytest.mark.parametrize("kind", ["medsam", "sam2"])
def test_a_few_answers_at_a_time_are_those_at_once(kind, medsam_reader, reader, monkeypatch):
    cache = medsam_reader if kind == "medsam" else reader
    heads = TeacherHeads.of_cache(cache)
    batch = stream(cache)(0).to(torch.device("cpu"))
    assert len(batch.slice_of) > 2
    at_once = heads.answer(batch.features.take(batch.slice_of), batch.prompts)
    monkeypatch.setattr("stages.training.heads._PIXELS_AT_ONCE", 2 * heads.runner.image_size**2)
    few = heads.answer_on(batch.features, batch.prompts, batch.slice_of)
    for field in dataclasses.fields(at_once):
        torch.testing.assert_close(getattr(few, field.name), getattr(at_once, field.name))


def test_a_smaller_student_needs_a_mode_before_anything_runs(cache_path, tmp_path):
    with pytest.raises(NetworkConfigError, match=r"student.resize_targets=area"):
        distill_encoder.run(
            StudentConfig(image_size=32), EncoderConfig(), make_context(tmp_path, cache_path)
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["area", "bilinear"])
def test_a_smaller_student_of_a_sam2_teacher(mode, reader, cache_path, tmp_path):
    """What it sees, is asked and is to match lies on its own grids."""
    student = StudentConfig(image_size=32, resize_targets=mode)
    small, same = stream(reader, 32)(0), stream(reader)(0)
    assert small.pixels.shape[-1] == small.masks.shape[-1] == 32
    assert torch.equal(small.features.s16, same.features.s16)
    assert torch.equal(small.prompts.points_BN2 * 2, same.prompts.points_BN2)
    heads = TeacherHeads.of_cache(reader, size=32, mode=mode)
    full = TeacherHeads.of_cache(reader)
    rows = same.to(torch.device("cpu")).features.take(same.slice_of)
    answer, reference = heads.answer(rows, small.prompts), full.answer(rows, same.prompts)
    assert answer.mask_logits.shape[-1] == 8
    assert torch.equal(answer.iou, reference.iou)
    if mode == "area":
        pooled = torch.nn.functional.avg_pool2d(reference.visible_logits, 2)
        assert torch.allclose(answer.visible_logits, pooled, atol=1e-4)

    folders = {}
    for name, stage, config in (
        ("encoder", distill_encoder, EncoderConfig(**SHORT, second_click=1.0)),
        ("memory", distill_memory, MemoryConfig(**SHORT)),
    ):
        (tmp_path / name).mkdir()
        stage.run(student, config, make_context(tmp_path / name, cache_path, inputs=dict(folders)))
        folders[name] = tmp_path / name
    assert load_runner(tmp_path / "memory" / "model").image_size == 32


def test_a_same_size_batch_is_untouched(reader):
    """Bit for bit what the cache holds, whether the size is named or not."""
    named, plain = stream(reader, reader.spec.preprocessing["image_size"])(1), stream(reader)(1)
    order = stream(reader)._order.batch(1)
    image = read_slices(reader, order, levels=()).image
    assert torch.equal(plain.pixels, to_network_input(image))
    for one, two in ((named.pixels, plain.pixels), (named.masks, plain.masks)):
        assert torch.equal(one, two)
    assert torch.equal(named.prompts.points_BN2, plain.prompts.points_BN2)


def test_identity_views_alone_or_all_of_them(blocks, tmp_path):
    """A transformed view is a row of its own, with its own image, label and features."""
    config = blocks.precompute.model_copy(update={"views": ViewConfig(count=2)})
    make_cache(dataclasses.replace(blocks, precompute=config), tmp_path / "views.cache")
    cache = CacheReader(tmp_path / "views.cache")
    every, plain = (
        training_rows(cache, EncoderConfig(views=views)) for views in ("all", "identity")
    )
    assert len(every) == 2 * len(plain)
    assert set(plain) < set(every)
    assert (cache.index.slices.view[plain] == 0).all()
    turned = np.setdiff1d(every, plain)
    assert (cache.index.slices.view[turned] == 1).all()
    network = load_network(cache.path / "teacher")
    batch = read_slices(cache, turned[:2])
    with torch.no_grad():
        live = network.encode(to_network_input(batch.image))
    assert torch.allclose(batch.features.s16.float(), live.s16, rtol=2e-3, atol=2e-3)
