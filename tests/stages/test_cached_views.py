"""Views in a cache: what is stored of one is its matrix's image of view 0, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest

from cache import CacheReader
from efficient_medsam2.images.views import warp_image, warp_label
from stages.row_settings import PromptConfig, TrackConfig, ViewConfig
from stages.training.labelled import labelled_rows, labelled_tracks
from tests.stages.conftest import make_cache


@pytest.fixture(scope="module")
def viewed(blocks, tmp_path_factory):
    path = tmp_path_factory.mktemp("views") / "views.cache"
    precompute = blocks.precompute.model_copy(
        update={
            "views": ViewConfig(count=3),
            "prompts": PromptConfig(per_object=1),
            "tracks": TrackConfig(per_object=1, length=2),
        }
    )
    make_cache(replace(blocks, precompute=precompute), path)
    return CacheReader(path)


def test_a_stored_view_is_the_warped_slice(viewed):
    index = viewed.index
    rows = index.select(view=2)[:12]
    for row in rows.tolist():
        record = index.slice_row(row)
        identity = index.find(record.case_id, record.slice_index, 0)
        image, seen = viewed.read("image", [identity, row])
        assert np.array_equal(seen, warp_image(image, record.affine))
        label, seen = viewed.read("label", [identity, row])
        assert np.array_equal(seen, warp_label(label, record.affine))
    assert not np.array_equal(image, viewed.read("image", [row])[0])


def test_a_labelled_slice_is_labelled_on_all_its_views(viewed):
    table = viewed.index.slices
    rows = labelled_rows(viewed, 0.3, seed=1)
    slices = set(zip(table.case_code[rows], table.slice_index[rows], strict=True))
    assert len(rows) == 3 * len(slices)
    every = viewed.index.select(split="train", view=0)
    assert 0.3 * len(every) <= len(slices) < 0.6 * len(every)
    assert len(labelled_rows(viewed, 1.0, seed=1)) == 3 * len(every)
    tracks = labelled_tracks(viewed, rows, length=2)
    assert tracks is not None
    first = viewed.index.tracks.first_rows[tracks.tracks]
    assert np.isin(viewed.index.tracks.slice_row[first], rows).all()
