"""Progress counts exactly, speaks before the first item, and never raises, from however many
threads.
"""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from io import StringIO

import pytest
from rich.console import Console

from cluster import logs
from cluster import progress as module
from cluster.progress import Meter, open_label, progress


@pytest.fixture(params=[True, False], ids=["terminal", "log"])
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StringIO:
    text = StringIO()
    terminal = Console(file=text, force_terminal=request.param, width=200)
    monkeypatch.setattr(logs, "console", lambda: terminal)
    return text


def count_to(total: int) -> int:
    with progress(total, "embed", "images") as advance:
        for _ in range(total + 1):
            advance(1, loss=0.5)
        advance(0)
    return advance.reached


@pytest.mark.usefixtures("screen")
def test_progress_takes_any_total_from_any_thread() -> None:
    totals = [0, 1, 7, 100] * 3
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(count_to, totals)) == [total + 1 for total in totals]
    assert count_to(3) == 4


@pytest.mark.usefixtures("screen")
def test_progress_lets_an_error_of_the_work_pass() -> None:
    with pytest.raises(KeyError), progress(3, "embed"):
        raise KeyError
    assert count_to(2) == 3


def test_work_is_seen_before_its_first_item_is_finished(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logs, "console", lambda: Console(file=StringIO()))
    monkeypatch.setattr(module, "FIRST_LINE_S", 0.0)
    spoken = threading.Event()
    caplog.handler.emit = lambda record: spoken.set()  # type: ignore[method-assign]
    with caplog.at_level(logging.INFO), progress(8, "embed", "images"):
        assert spoken.wait(30)


def test_only_the_innermost_meter_speaks() -> None:
    with progress(None, "curate") as step:
        assert not step.is_covered
        with progress(4, "image level 1", "spans") as phase:
            assert step.is_covered
            assert not phase.is_covered
        assert not step.is_covered


@pytest.mark.usefixtures("screen")
def test_a_phase_carries_the_name_of_its_step() -> None:
    def inner_label(step: str) -> str:
        with progress(None, step), progress(3, open_label("embed")) as meter:
            return meter.label

    steps = ["images@classification", "images@retrieval", "embed@view1"]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(inner_label, steps)) == steps
    assert open_label("embed") == "embed"


def test_items_inside_unfinished_parts_count_once() -> None:
    meter = Meter(10_000, "embed", "images")
    meter.under_way(1500)
    assert meter.count() == "1,500 of 10,000 images"
    meter.under_way(500)
    meter(1024, rejects=3)
    assert meter.count() == "1,524 of 10,000 images"
    assert meter.beside() == "rejects 3"


def test_a_total_that_is_too_small_grows() -> None:
    meter = Meter(8, "image level 1", "spans")
    meter(13)
    assert meter.count() == "13 of 13 spans"
    assert meter.is_complete
