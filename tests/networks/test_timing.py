import time

from efficient_medsam2.networks.timing import milliseconds_per_slice
from tests.networks.tiny import tiny_runner


def test_the_median_is_positive_and_within_the_whole(runner):
    started = time.perf_counter()
    median = milliseconds_per_slice(runner, rounds=3)
    whole = (time.perf_counter() - started) * 1000
    # Two of the three rounds take the median or longer.
    assert 0 < median <= whole / 2


def test_a_slower_encoder_is_seen():
    runner = tiny_runner()
    runner.model.vision_encoder.register_forward_pre_hook(lambda *_: time.sleep(0.05))
    assert milliseconds_per_slice(runner, rounds=1) > 50
