import threading

import pytest

from cache import CacheSpaceError
from cache.mirror_room import MirrorRoom


@pytest.fixture
def gone():
    return []


@pytest.fixture
def room(gone):
    return MirrorRoom(100, gone.append)


def bring(room, name, size):
    assert room.use_one(name, size) == "taken"
    room.arrived(name)
    room.unuse([name])


def test_the_least_recently_used_goes_first(room, gone):
    for name in "abc":
        bring(room, name, 30)
    assert room.touch("a")
    bring(room, "d", 40)
    assert gone == ["b"]
    assert (room.used, room.peak, room.evicted) == (100, 100, 1)


def test_a_file_in_use_never_goes(room, gone):
    bring(room, "a", 60)
    assert room.use({"a": 60})
    assert not room.take({"b": 50}, wait=False)
    room.drop("a")
    assert gone == []
    room.unuse(["a"])
    assert room.take({"b": 50}, wait=False)
    assert gone == ["a"]


def test_nothing_is_thrown_away_in_vain(room, gone):
    bring(room, "a", 30)
    bring(room, "b", 60)
    assert room.use({"b": 60})
    assert not room.take({"c": 50}, wait=False)
    assert gone == []


def test_who_needs_room_waits_until_there_is_some(room, gone):
    bring(room, "a", 80)
    assert room.use({"a": 80})
    taken = threading.Event()
    thread = threading.Thread(target=lambda: (room.use_one("b", 50), taken.set()))
    thread.start()
    assert not taken.wait(0.05)
    room.unuse(["a"])
    assert taken.wait(60)
    thread.join()
    assert gone == ["a"]


def test_one_fetches_and_the_others_wait(room):
    assert room.use_one("a", 10) == "taken"
    found = []
    thread = threading.Thread(target=lambda: found.append(room.use_one("a", 10)))
    thread.start()
    room.arrived("a")
    thread.join()
    assert found == ["there"]
    room.unuse(["a"])
    room.unuse(["a"])
    room.drop("a")
    assert room.used == 0


def test_a_fetch_that_fails_is_another_threads_turn(room):
    assert room.use_one("a", 10) == "taken"
    found = []
    thread = threading.Thread(target=lambda: found.append(room.use_one("a", 10)))
    thread.start()
    room.abandon(["a"])
    thread.join()
    assert found == ["taken"]
    assert room.used == 10


def test_a_file_of_another_size_is_replaced(room, gone):
    room.add("a", 10)
    assert not room.use({"a": 20})
    assert room.use_one("a", 20) == "taken"
    assert gone == ["a"]


def test_a_bound_that_was_lowered_holds_at_once(gone):
    room = MirrorRoom(50, gone.append)
    for name in "abc":
        room.add(name, 20)
    assert gone == ["a"]
    assert room.peak <= 50


def test_what_never_fits_is_refused(room):
    with pytest.raises(CacheSpaceError, match=r"cache\.mirror\.max_gb"):
        room.use_one("a", 101)
