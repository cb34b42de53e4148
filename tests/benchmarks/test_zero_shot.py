"""The zero-shot table: what is measured, what is left out, and the box beside the model."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.measured_model import SHIPPED_TEACHER, measured_model
from benchmarks.zero_shot import HEADS, main, read_results, table_cells
from benchmarks.zero_shot_scores import Limits, filled_boxes, measure_data, spread
from efficient_medsam2.images import find_cases
from efficient_medsam2.metrics import dsc
from efficient_medsam2.networks.model_folder import load_network
from efficient_medsam2.prompts import box_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three volumes: a bright box on all six slices, and a speck that is too small."""
    data = tmp_path / "volumes"
    data.mkdir()
    for number in range(3):
        label = np.zeros((6, 64, 64), np.uint8)
        label[:, 20:44, 16 + number : 48] = 1
        label[2, 2:4, 2:4] = 2
        image = np.where(label == 1, 200, 40).astype(np.uint8)
        np.savez(data / f"box_{number}.npz", imgs=image, gts=label, spacing=np.ones(3))
    return data


@pytest.mark.parametrize(
    ("count", "limit", "wanted"),
    [(3, 5, [0, 1, 2]), (9, 3, [0, 4, 8]), (9, 1, [0]), (0, 2, [])],
)
def test_what_is_kept_is_spread_evenly(count, limit, wanted):
    assert spread(range(count), limit) == wanted


def test_a_filled_box_includes_its_last_pixels():
    mask = np.zeros((9, 12), bool)
    mask[2:5, 3:11] = True
    other = np.zeros_like(mask)
    other[8, 0] = True
    boxes = np.stack([box_of(mask), box_of(other)])
    np.testing.assert_array_equal(filled_boxes(boxes, 9, 12), [mask, other])


def test_of_a_box_the_box_is_the_answer(folder):
    runner = load_network(SHIPPED_TEACHER)
    sources = find_cases(folder).sources
    limits = Limits(cases=2, slices=2, track_length=3)
    found = measure_data(sources, runner, limits)
    assert (found.cases, found.cases_found, found.objects, found.prompts) == (2, 3, 2, 4)
    assert (found.tracks, found.objects_too_small) == (2, 2)
    assert found.box_dsc == found.box_nsd == found.box_dsc_3d == 1.0
    assert found.dsc is not None
    assert found.dsc_3d is not None
    assert 0.5 < found.dsc < 1
    assert 0 < found.dsc_3d <= 1
    assert measure_data(sources, runner, limits) == found


def test_the_box_of_a_triangle_covers_it_twice(tmp_path):
    label = np.tri(64, dtype=np.uint8)[None]
    np.savez(tmp_path / "t.npz", imgs=label * 200, gts=label, spacing=np.ones(3))
    found = measure_data(find_cases(tmp_path).sources, load_network(SHIPPED_TEACHER), Limits())
    assert found.box_dsc == pytest.approx(dsc(np.ones((64, 64), bool), label[0] > 0))
    assert (found.tracks, found.dsc_3d, found.box_dsc_3d) == (0, None, None)


def test_the_command_writes_what_the_table_says(folder, tmp_path):
    target = tmp_path / "results" / "zero.json"
    words = ["--data", f"boxes={folder}", "--slices", "1", "--cases", "1", "--json", str(target)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    results = read_results(target)
    (row,) = results.rows
    assert results.model == measured_model(SHIPPED_TEACHER)
    assert (results.limits.slices, row.name, row.figures.prompts) == (1, "boxes", 1)
    cells = table_cells(row)
    assert len(cells) == len(HEADS)
    assert cells[1] == "1 of 3"
    assert all(cell in done.output for cell in cells)


@pytest.mark.parametrize(
    ("pair", "words"), [("boxes", "not NAME=FOLDER"), ("boxes=nowhere", "nowhere does not exist")]
)
def test_data_that_is_not_there_is_told(pair, words):
    done = CliRunner().invoke(main, ["--data", pair])
    assert done.exit_code == 2
    assert words in done.output
