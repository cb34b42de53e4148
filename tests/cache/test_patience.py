"""Waiting for a store: how long, and that it is said."""

import socket
import threading

import pytest

pytest.importorskip("obstore", reason="the extra s3 is not installed")

from obstore import exceptions

from cache.errors import CacheUnreachableError
from cache.patience import Asking, Patience
from pipeline.object_store import open_remote, patience_of

HOUR = 3600.0


class Store:
    """Fails so often, then answers."""

    def __init__(self, failures):
        self.failures = failures
        self.asked = 0

    def __call__(self, answering):
        self.asked += 1
        if self.asked <= self.failures:
            raise exceptions.GenericError("connection refused")
        return "content"


def test_a_shorter_wait_is_never_a_longer_one():
    notes = []
    patience = Patience(first_seconds=0, seconds=HOUR, setting="--patience SECONDS")
    asking = Asking("s3://b/c", patience, notes.append)
    never = Store(2)
    with pytest.raises(CacheUnreachableError):
        asking.within(HOUR).ask("x", never)
    assert never.asked == 1
    brief = asking.within(0)
    assert brief.ask("x", Store(0)) == "content"
    with pytest.raises(CacheUnreachableError):
        brief.ask("x", Store(2))
    away = Asking("s3://b/c", Patience(first_seconds=HOUR, setting="--wait S"), notes.append)
    shorter = away.within(HOUR / 2)
    away.close()
    with pytest.raises(CacheUnreachableError):
        shorter.ask("x", Store(2))


def test_a_store_that_never_answered_is_given_up_sooner_than_one_that_did():
    asking = Asking("s3://b/c", Patience(first_seconds=0, seconds=HOUR), None)
    never = Store(2)
    with pytest.raises(CacheUnreachableError, match=r"s3://b/c \(x\): connection refused.*AWS_"):
        asking.ask("x", never)
    assert never.asked == 1
    assert asking.ask("x", Store(0)) == "content"
    away = Store(2)
    assert asking.ask("x", away) == "content"
    assert away.asked == 3


def test_waiting_is_told_once_with_how_long_and_how_to_change_it():
    lines = []
    patience = Patience(first_seconds=HOUR, setting="--patience SECONDS")
    asking = Asking("s3://b/c", patience, lines.append)
    asking.ask("x", Store(3))
    assert lines == [
        "s3://b/c does not answer and is asked again for up to 3600 s "
        "(change it: --patience SECONDS)",
        "s3://b/c answers",
    ]


def test_a_request_without_an_answer_is_told_while_it_lasts():
    told = threading.Event()

    def hang(answering):
        assert told.wait(60), "nothing was said"

    Asking("s3://b/c", Patience(quiet_seconds=0.01), lambda _: told.set()).ask("x", hang)


def test_a_long_answer_is_not_taken_for_none():
    lines = []
    asking = Asking("s3://b/c", Patience(quiet_seconds=HOUR), lines.append)
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]

    def read(answering):
        own = [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
        (timer,) = [thread for thread in own if thread not in timers]
        answering()
        timer.join(60)
        assert not timer.is_alive()

    asking.ask("x", read)
    assert lines == []


def test_those_who_wait_give_up_when_it_is_closed():
    asking = Asking("s3://b/c", Patience(first_seconds=HOUR), lambda _: asking.close())
    with pytest.raises(CacheUnreachableError, match="connection refused"):
        asking.ask("x", Store(1000))


def test_defaults():
    assert patience_of(None, brief=True) == Patience(
        first_seconds=60, seconds=60, setting="--patience SECONDS"
    )
    assert patience_of(None).seconds == 600
    assert patience_of(5).first_seconds == patience_of(5, brief=True).seconds == 5


def test_a_server_that_takes_connections_and_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with socket.create_server(("127.0.0.1", 0)) as dead:
        options = {"endpoint": f"http://127.0.0.1:{dead.getsockname()[1]}", "region": "us-east-1"}
        remote = open_remote("s3://bucket/x", options, patience=patience_of(0))
        with pytest.raises(CacheUnreachableError, match=r"s3://bucket/x \(cache.json\)"):
            remote.read("cache.json")
