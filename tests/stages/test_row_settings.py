"""Settings of views, prompts and tracks."""

import pytest
from pydantic import ValidationError

from stages.row_settings import PromptConfig, TrackConfig, ViewConfig


@pytest.mark.parametrize(
    ("given", "kept"),
    [("medsam2", 0.1), ("none", 0.0), ("challenge", "challenge"), (0.25, 0.25), ("0.3", None)],
)
def test_jitter_is_a_name_or_a_fraction(given, kept):
    if kept is None:
        with pytest.raises(ValidationError, match="medsam2, challenge, none, or a fraction"):
            PromptConfig(jitter=given)
    else:
        assert PromptConfig(jitter=given).jitter == kept


def test_a_negative_jitter_is_refused():
    with pytest.raises(ValidationError):
        PromptConfig(jitter=-0.1)


def test_shares_are_probabilities():
    with pytest.raises(ValidationError, match=r"box_share 0\.75 \+ recist_share 0 \+ mask_share"):
        PromptConfig(mask_share=0.5)
    with pytest.raises(ValidationError, match="is more than 1"):
        TrackConfig(mask_share=0.6, points_share=0.5)
    thirds = TrackConfig(mask_share=0.3, points_share=0.3, recist_share=0.4)
    assert thirds.box_share == pytest.approx(0)
    assert TrackConfig().box_share == 1.0


def test_caches_made_before_a_setting_existed_are_still_what_is_wanted():
    assert ViewConfig(seed=3).row_settings() == {"count": 1}
    assert ViewConfig(count=2).row_settings().keys() == ViewConfig.model_fields.keys()
    old = {"per_object": 2, "box_share": 0.75, "jitter": 0.1, "seed": 0}
    assert PromptConfig(jitter="medsam2").row_settings() == old
    assert TrackConfig().row_settings() == {"per_object": 2, "length": 6, "margin": 1}
    assert PromptConfig(max_points=3).row_settings() == {**old, "max_points": 3}
    changed = TrackConfig(prompted_slice="middle", length=None).row_settings()
    assert changed == {"per_object": 2, "prompted_slice": "middle", "length": None, "margin": 1}


@pytest.mark.parametrize(
    "values", [{"count": 0}, {"rotate_degrees": 181}, {"scale": 0.6}, {"shift": 0.6}, {"zoom": 1}]
)
def test_views_beyond_reason_are_refused(values):
    with pytest.raises(ValidationError):
        ViewConfig(**values)
