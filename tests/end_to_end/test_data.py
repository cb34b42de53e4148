"""Bad data through the command line: exit code 3 and a message with file, cause and mend."""

import json
import shutil

import numpy as np
import pytest

from cache import CacheReader
from tests.end_to_end import files


def empty_folder(folder):
    folder.mkdir()
    return folder, ("no case found",)


def image_without_mask(folder):
    files.write_pictures(folder)
    (folder / "masks" / "eye1.png").unlink()
    return folder, ("eye1.png", "image without mask", "Add a mask")


def mask_without_image(folder):
    files.write_pictures(folder)
    (folder / "images" / "eye1.png").unlink()
    return folder, ("eye1.png", "mask without image", "Add the image")


def other_shape(folder):
    files.write_nifti_pair(folder, "liver", label=files.volume(0, depth=3)[1])
    return folder, ("liver.nii.gz", "shape (32, 32, 3)", "never resized")


def nothing_labelled(folder):
    files.write_npz(folder, "3D_blank", label=np.zeros((4, 32, 32), np.uint8))
    return folder, ("3D_blank.npz", "no object", "Mend the label")


def not_a_number(folder):
    image = files.volume(0)[0].astype(np.float32)
    image[1, 5, 5] = np.nan
    files.write_npz(folder, "3D_nan", image=image)
    return folder, ("3D_nan.npz", "NaN", "Mend the file")


def cut_npz(folder):
    path = files.write_npz(folder, "3D_cut")
    path.write_bytes(path.read_bytes()[:-200])
    return folder, ("3D_cut.npz", "truncated or damaged", "copy it again")


def damaged_npz(folder):
    path = files.write_npz(folder, "3D_damaged")
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    return folder, ("3D_damaged.npz", "truncated or damaged", "copy it again")


def cut_nifti(folder):
    files.write_nifti_pair(folder, "cut")
    path = folder / "images" / "cut.nii.gz"
    path.write_bytes(path.read_bytes()[:-300])
    return folder, ("cut.nii.gz", "copy it again")


def cut_picture(folder):
    files.write_pictures(folder)
    path = folder / "images" / "eye2.png"
    path.write_bytes(path.read_bytes()[:-80])
    return folder, ("eye2.png", "copy it again")


def pickled(folder):
    folder.mkdir()
    np.savez(folder / "3D_pickle.npz", imgs=np.array([{}], object), gts=np.zeros((2, 8, 8), int))
    return folder, ("3D_pickle.npz", "pickled", "numpy.savez_compressed")


def same_name_twice(folder):
    files.write_npz(folder / "a", "3D_case")
    files.write_npz(folder / "b", "3D_case")
    return folder, ("3D_case", "unique", "Rename one file")


def no_folder(folder):
    return folder, ("no such file or folder", "Check the path")


def too_small_objects(folder):
    label = np.zeros((4, 32, 32), np.uint8)
    label[1, 3, 3] = 1
    files.write_npz(folder, "3D_dot", label=label)
    return folder, ("no object of at least 5 pixels", "--set data.smallest=")


@pytest.mark.parametrize(
    "make",
    [
        empty_folder,
        image_without_mask,
        mask_without_image,
        other_shape,
        nothing_labelled,
        not_a_number,
        cut_npz,
        damaged_npz,
        cut_nifti,
        cut_picture,
        pickled,
        same_name_twice,
        no_folder,
        too_small_objects,
    ],
    ids=lambda make: make.__name__,
)
def test_bad_data_are_refused_before_anything_is_written(new_run, tmp_path, make):
    source, parts = make(tmp_path / "data")
    code = new_run("precompute", data__source=source)
    error = next(line for line in new_run.err.splitlines() if line.startswith("error: "))
    assert code == 3, new_run.err
    for part in parts:
        assert part in error
    assert not new_run.cache.exists() or not any(new_run.cache.iterdir())


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("encoder.learning_rat=1", ("encoder.learning_rat", "encoder.learning_rate")),
        ("encodr.steps=1", ("encodr", "encoder")),
        ("encoder.steps=many", ("encoder.steps", "many", "integer")),
        ("finetune.label_fractions=[0.5, 2]", ("finetune.label_fractions", "up to 1")),
        ("finetune.label_fractions=[0.5, 0.5]", ("finetune.label_fractions", "once")),
        ("finetune.label_fractions=[]", ("finetune.label_fractions",)),
    ],
)
def test_a_bad_setting_is_named_with_what_is_known(new_run, setting, parts):
    key, _, value = setting.partition("=")
    assert new_run("precompute", **{key: value}) == 2
    for part in parts:
        assert part in new_run.err
    assert not new_run.folder.exists()


def flat_volume(folder):
    for number in range(3):
        files.write_npz(folder, f"3D_flat{number}", depth=1, seed=number)
    return folder


def object_on_one_slice(folder):
    for number in range(3):
        image, label = files.volume(number)
        label[[0, 2, 3]] = 0
        files.write_npz(folder, f"3D_one{number}", image=image, label=label)
    return folder


def labels_from_seven(folder):
    for number in range(3):
        image, label = files.volume(number)
        label[label > 0] = 7 + 200 * (label[label > 0] - 1)
        files.write_npz(folder, f"3D_seven{number}", image=image, label=label)
    return folder


ODD = {"encoder__steps": 1, "memory__steps": 1, "finetune__steps": 1, "evaluate__limit": 1}


@pytest.mark.parametrize(
    ("make", "tracks"),
    [
        (flat_volume, False),
        (object_on_one_slice, True),
        (labels_from_seven, True),
        (files.write_pictures, False),
    ],
)
def test_odd_but_good_data_go_all_the_way(new_run, tmp_path, make, tracks):
    source = make(tmp_path / "data")
    assert new_run("run", data__source=source, **ODD) == 0, new_run.err
    reader = CacheReader(new_run.cache)
    assert bool(len(reader.index.tracks)) == tracks
    document = json.loads((new_run.folder / "evaluate" / "rows.json").read_text())
    names = set(document["rows"][0]["per_structure"])
    assert names == ({"7", "207"} if make is labels_from_seven else {"1", "2"})
    if not tracks:
        assert "handed on as it is" in new_run.err
        assert document["rows"][0]["dsc_3d"] is None


def test_raw_data_may_be_gone_once_they_are_cached(new_run, tmp_path):
    source = files.write_npz_folder(tmp_path / "data")
    assert new_run("precompute", data__source=source) == 0
    assert "borrows" not in new_run.err
    for path in source.iterdir():
        path.unlink()
    new_run.values |= {"data.source": source, "teacher.checkpoint": tmp_path / "gone"}
    assert new_run("train", "encoder") == 0, new_run.err
    source.rmdir()
    assert new_run("train", "memory") == 0, new_run.err
    state, reasons = new_run.states()["precompute"]
    assert state == "fresh"
    assert "raw data are not here" in " ".join(reasons)
    assert "checkpoint is not here" in " ".join(reasons)


def test_a_changed_file_makes_the_cache_stale_and_a_touched_one_does_not(new_run, tmp_path):
    source = files.write_npz_folder(tmp_path / "data")
    new_run.values["data.source"] = source
    assert new_run("precompute") == 0
    path = source / "3D_case2.npz"
    path.write_bytes(path.read_bytes())
    assert new_run.states()["precompute"][0] == "fresh"
    files.write_npz(source, "3D_case2", seed=99)
    state, reasons = new_run.states()["precompute"]
    assert state == "stale"
    assert reasons[0].startswith("data.source, file 3D_case2.npz: ")
    assert new_run("train", "encoder") == 4
    assert new_run("precompute") == 4
    assert "--force precompute" in new_run.err
    assert new_run("precompute", "--force", "precompute") == 0
    assert new_run.states()["precompute"][0] == "fresh"


@pytest.fixture
def with_bad_cases(tmp_path):
    """Six good cases, one that cannot be read, one without an object."""
    source = files.write_npz_folder(tmp_path / "data", count=6)
    image = np.full((4, 32, 32), np.nan, np.float32)
    files.write_npz(source, "3D_nan", image=image)
    files.write_npz(source, "3D_blank", label=np.zeros((4, 32, 32), np.uint8))
    return source


def test_cases_that_cannot_be_read_are_skipped_when_asked_and_told(new_run, with_bad_cases):
    new_run.values |= {"data.source": with_bad_cases, "data.on_error": "skip"}
    assert new_run("run", **ODD) == 0, new_run.err
    assert "skipped case 3D_nan: " in new_run.err
    assert "skipped case 3D_blank: " in new_run.err
    assert "skipped 2 of 8 cases" in new_run.err
    skipped = json.loads((new_run.cache / "skipped.json").read_text())
    assert set(skipped) == {"3D_blank", "3D_nan"}
    reader = CacheReader(new_run.cache)
    assert {case.case_id for case in reader.index.cases} == {f"3D_case{n}" for n in range(6)}
    splits = json.loads((new_run.cache / "splits.json").read_text())
    assert set(splits["assignment"]) == {f"3D_case{n}" for n in range(6)}
    state, reasons = new_run.states()["precompute"]
    assert state == "fresh"
    assert "2 cases that cannot be read were left out" in " ".join(reasons)


def test_a_skipped_case_that_was_mended_makes_the_cache_stale(new_run, with_bad_cases):
    new_run.values |= {"data.source": with_bad_cases, "data.on_error": "skip"}
    assert new_run("precompute") == 0
    assert new_run.states(data__on_error="stop")["precompute"][0] == "stale"
    files.write_npz(with_bad_cases, "3D_nan")
    state, reasons = new_run.states()["precompute"]
    assert state == "stale"
    assert "3D_nan.npz" in reasons[0]
    (with_bad_cases / "3D_nan.npz").unlink()
    assert new_run.states()["precompute"][0] == "fresh"


def test_no_readable_case_is_an_error_even_when_skipping(new_run, tmp_path):
    source, _ = not_a_number(tmp_path / "data")
    assert new_run("precompute", data__source=source, data__on_error="skip") == 3
    assert "none of the 1 cases can be read" in new_run.err


def test_an_empty_training_split_is_told_before_training(new_run, tmp_path):
    source = files.write_npz_folder(tmp_path / "data")
    new_run.values |= {"data.source": source, "data.splits": "[0, 0.5, 0.5]"}
    code = new_run("precompute")
    code = code or new_run("train", "encoder")
    assert code in (3, 4)
    assert "data.splits" in new_run.err


def test_evaluation_names_a_test_case_that_is_not_there(new_run, tmp_path):
    source = files.write_npz_folder(tmp_path / "data", count=8)
    new_run.values["data.source"] = source
    assert new_run("run", "--only", "precompute") == 0
    for stage in ("encoder", "memory", "finetune"):
        assert new_run("train", stage, **ODD | {"baseline__enabled": "false"}) == 0
    few = tmp_path / "few"
    shutil.copytree(source, few)
    splits = json.loads((new_run.cache / "splits.json").read_text())["assignment"]
    lost = next(case for case, split in splits.items() if split == "test")
    (few / f"{lost}.npz").unlink()
    changes = ODD | {"baseline__enabled": "false", "data__source": few}
    assert new_run("run", "--only", "evaluate", **changes) in (3, 4)
    assert lost in new_run.err
