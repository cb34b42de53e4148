"""Filling a cache: never twice, the same however it was stopped, and equal to the teacher alone."""

import json
import os
import signal
import threading

import numpy as np
import pytest
import torch
from transformers import SamConfig

from cache import CacheReader, CacheSpaceError
from cache.errors import CacheCorruptError
from cache.ledger import entry_path
from efficient_medsam2.errors import DataError
from efficient_medsam2.images import squash_labels, squash_slices
from efficient_medsam2.images.views import warp_image, warp_label
from efficient_medsam2.networks.mask_prompts import low_res_logits
from efficient_medsam2.networks.records import Prompts, SliceFeatures
from efficient_medsam2.networks.sam1 import Sam1Runner
from efficient_medsam2.teachers.medsam import MedSamTeacher
from stages.cache_settings import PrecomputeConfig, tracks_for
from stages.row_settings import TrackConfig
from stages.side_files import PROGRESS_NAME
from tests.networks.tiny import SIZE
from tests.stages.passes import (
    DEPTHS,
    FLIPPED,
    PROMPTS,
    CountedTeacher,
    Work,
    make_case,
    make_index,
    the_runner,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    work = Work(tmp_path_factory.mktemp("finished") / "cache")
    work.digest = work()
    return work


@pytest.fixture(scope="module")
def reader(finished):
    return CacheReader(finished.path)


@pytest.fixture(scope="module")
def runner():
    return the_runner()


def assert_no_thread_is_left():
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"cache-reader", "cache-writer"}


def close(mine, wanted):
    wanted = np.asarray(wanted)
    assert mine.shape == wanted.shape
    assert np.abs(mine - wanted).max() <= 1e-4 * max(np.abs(wanted).max(), 1)


def test_images_are_read_slice_by_slice_and_cases_are_closed(finished):
    wanted = []
    for name, depth in DEPTHS.items():
        wanted += [(name, index) for index in range(depth)] + [(name, "closed")]
    assert finished.read == wanted


def test_every_view_is_encoded_once(finished):
    assert finished.teacher.encoded == 2 * sum(DEPTHS.values())
    # Four rows a shard in batches of three: no batch crosses a shard.
    assert finished.teacher.batches == [3, 1] * 5


def test_each_row_holds_its_view_and_the_teachers_features_of_it(finished, reader, runner):
    images, labels = reader.read("image", range(20)), reader.read("label", range(20))
    for row in range(20):
        record = finished.index.slice_row(row)
        case = make_case(record.case_id)
        part = slice(record.slice_index, record.slice_index + 1)
        image = squash_slices(case.image[part], SIZE)[0]
        label = squash_labels(case.label[part], SIZE)[0]
        if record.view == 1:
            np.testing.assert_array_equal(warp_image(image, FLIPPED), image[:, :, ::-1])
            image, label = warp_image(image, FLIPPED), warp_label(label, FLIPPED)
        np.testing.assert_array_equal(images[row], image)
        np.testing.assert_array_equal(labels[row], label)
    with torch.no_grad():
        features = runner.encode(finished.teacher.network_input(torch.from_numpy(images)))
    for level in ("s4", "s8", "s16"):
        close(reader.read(f"features_{level}", range(20)), getattr(features, level))


def test_every_prompt_is_answered_as_by_the_teacher_alone(finished, reader, runner):
    table = finished.index.prompts
    logits = reader.read("mask_logits", range(len(table)))
    iou, score = (reader.read(name, range(len(table))) for name in ("mask_iou", "object_score"))
    for row in range(len(table)):
        record = finished.index.prompt_row(row)
        features = features_of(reader, [record.slice_row])
        points, labels = PROMPTS[record.kind]
        dense = None
        if record.kind == "mask":
            label = reader.read("label", [record.slice_row])
            mask = torch.from_numpy(label == record.object_id).float().unsqueeze(1)
            assert mask.any()
            dense = low_res_logits(mask, SIZE // 4)
            assert dense.max() == 10
            assert dense.min() == -10
        prompts = Prompts(
            points_BN2=torch.tensor(points).reshape(1, -1, 2),
            labels_BN=torch.tensor(labels, dtype=torch.int64).reshape(1, -1),
            mask_logits=dense,
        )
        with torch.no_grad():
            answer = runner.prompted(features, prompts)
        close(logits[row], answer.mask_logits[0, 0])
        close(iou[row], answer.best_iou[0])
        close(score[row], answer.object_score[0])


def features_of(reader, rows):
    return SliceFeatures(
        **{
            level: torch.from_numpy(reader.read(f"features_{level}", rows))
            for level in ("s4", "s8", "s16")
        }
    )


def test_a_second_run_makes_nothing(finished):
    again = finished.but(teacher=CountedTeacher())
    assert again() == finished.digest
    assert (again.teacher.encoded, again.read) == (0, [])
    assert {report.rows for report in again.reports.values()} == {0}


def test_the_same_work_elsewhere_writes_the_same_bytes(finished, tmp_path):
    assert finished.but(path=tmp_path / "cache", teacher=CountedTeacher())() == finished.digest


@pytest.mark.parametrize("slice_index", [0, 3, 6])
def test_a_damaged_file_ends_the_run_which_then_goes_on(finished, tmp_path, slice_index):
    error = DataError(f"slice {slice_index} is damaged")
    failing = finished.but(
        path=tmp_path / "cache", teacher=CountedTeacher(), error_at=(slice_index, error)
    )
    with pytest.raises(DataError, match=f"slice {slice_index}"):
        failing()
    assert_no_thread_is_left()
    there = len(CacheReader(failing.path).finished_rows("slices"))
    assert there <= 2 * slice_index
    mended = failing.but(teacher=CountedTeacher(), error_at=None)
    assert mended() == finished.digest
    assert mended.teacher.encoded == 20 - there


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_whole_shards_and_the_next_run_goes_on(finished, tmp_path, signum):
    work = finished.but(path=tmp_path / "cache", teacher=CountedTeacher())

    def interrupt(*_):
        raise KeyboardInterrupt

    def on_encode():
        if work.teacher.encoded >= 12:
            os.kill(os.getpid(), signum)

    work.teacher.on_encode = on_encode
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert_no_thread_is_left()
    there = CacheReader(work.path).finished_rows("slices")
    # The shard that was complete is written before the run ends.
    assert len(there) == 12
    again = work.but(teacher=CountedTeacher())
    assert again() == finished.digest
    assert again.teacher.encoded == 8


def test_a_full_disk_ends_the_run_which_then_goes_on(finished, tmp_path):
    import resource

    work = finished.but(path=tmp_path / "cache", teacher=CountedTeacher())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        if work.teacher.encoded >= 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))

    work.teacher.on_encode = fill
    try:
        with pytest.raises(CacheSpaceError):
            work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_no_thread_is_left()
    there = len(CacheReader(work.path).finished_rows("slices"))
    assert 0 < there < 20
    again = work.but(teacher=CountedTeacher())
    assert again() == finished.digest
    assert again.teacher.encoded == 20 - there


def test_only_a_lost_shard_is_made_again(finished, tmp_path):
    work = finished.but(path=tmp_path / "cache", teacher=CountedTeacher())
    work()
    entry_path(work.path, "slices", 2).unlink()
    again = work.but(teacher=CountedTeacher())
    assert again() == finished.digest
    assert again.teacher.encoded == 4
    assert {slot for slot in again.read if slot[1] != "closed"} == {("long", 4), ("long", 5)}


def test_damaged_features_are_refused_before_the_teacher_sees_them(finished, tmp_path):
    work = finished.but(path=tmp_path / "cache", teacher=CountedTeacher())
    work()
    for entry in (work.path / "ledger").glob("prompts-*.json"):
        entry.unlink()
    shard = next((work.path / "arrays" / "features_s16" / "c" / "1").rglob("*0"))
    while shard.is_dir():
        shard = next(shard.iterdir())
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CacheCorruptError, match="features_s16"):
        work.but(teacher=CountedTeacher())()
    assert_no_thread_is_left()


def test_an_automatic_batch_size_is_kept_for_the_whole_cache(tmp_path):
    auto = PrecomputeConfig()
    assert auto.batch_size == "auto"
    work = Work(tmp_path / "cache", config=auto)
    digest = work()
    note = json.loads((work.path / PROGRESS_NAME).read_text())
    assert note == {"batch_size": work.batch_size}
    (work.path / PROGRESS_NAME).write_text('{"batch_size": 2}')
    entry_path(work.path, "slices", 0).unlink()
    resumed = work.but(teacher=CountedTeacher())
    resumed()
    assert resumed.batch_size == 2
    assert resumed.teacher.batches == [2, 2]
    anew = work.but(teacher=CountedTeacher(), resume=False)
    assert anew() == digest
    assert anew.batch_size == work.batch_size


def test_what_a_user_asks_for_goes_before_what_was_found(finished, tmp_path):
    work = finished.but(
        path=tmp_path / "cache", teacher=CountedTeacher(), config=PrecomputeConfig(batch_size=1)
    )
    work()
    assert set(work.teacher.batches) == {1}
    one, three = CacheReader(work.path), CacheReader(finished.path)
    assert one.spec.fingerprint() == three.spec.fingerprint()
    for array in three.spec.arrays:
        rows = range(three.counts[array.rows])
        close(one.read(array.name, rows).astype(float), three.read(array.name, rows).astype(float))


def test_the_stored_type_does_not_depend_on_the_precision(finished, tmp_path):
    work = finished.but(
        path=tmp_path / "cache",
        teacher=CountedTeacher(),
        kind="float16",
        config=PrecomputeConfig(batch_size=3, precision="bf16"),
    )
    work()
    mine, exact = CacheReader(work.path), CacheReader(finished.path)
    for level in ("s4", "s8", "s16"):
        stored = mine.read(f"features_{level}", range(20))
        wanted = exact.read(f"features_{level}", range(20))
        assert stored.dtype == np.float16
        error = np.abs(stored - wanted).max() / np.abs(wanted).max()
        assert 1e-4 < error < 0.1


def medsam_like():
    """A SAM 1 as MedSAM's, a thousandth of its size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        from transformers import SamModel

        config = SamConfig(
            vision_config={
                "hidden_size": 16,
                "output_channels": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": SIZE,
                "mlp_dim": 16,
                "num_pos_feats": 16,
                "global_attn_indexes": [0],
            },
            prompt_encoder_config={
                "hidden_size": 32,
                "image_size": SIZE,
                "image_embedding_size": SIZE // 16,
            },
            mask_decoder_config={"hidden_size": 32, "mlp_dim": 16, "iou_head_hidden_dim": 16},
        )
        return MedSamTeacher(Sam1Runner(SamModel(config).eval()))


def test_a_teacher_of_one_level_and_no_memory_fills_slices_and_prompts(tmp_path):
    teacher = medsam_like()
    work = Work(tmp_path / "cache", teacher=teacher, index=make_index(tracks=False))
    work()
    reader = CacheReader(work.path)
    assert {array.name for array in reader.spec.arrays_of("slices")} == {
        "features_s16",
        "image",
        "label",
    }
    image = torch.from_numpy(reader.read("image", range(3)))
    with torch.no_grad():
        wanted = teacher.encode(teacher.network_input(image))["s16"]
    close(reader.read("features_s16", range(3)), wanted)
    assert len(reader.finished_rows("prompts")) == len(work.index.prompts) == 40
    assert work.reports["tracks"].rows == 0


def test_a_teacher_without_a_memory_is_asked_for_no_tracks(finished):
    tracks = TrackConfig()
    assert tracks_for(medsam_like(), tracks).per_object == 0
    assert tracks_for(finished.teacher, tracks) == tracks


def test_each_pass_tells_what_bounds_it(finished):
    lines = [line for line in finished.notes if "-bound" in line]
    assert len(lines) == 3
    assert lines[0].startswith("precompute: slices: 20 rows in ")
