"""Progress never raises, whatever the totals and from however many threads."""

import logging
from concurrent.futures import ThreadPoolExecutor
from io import StringIO

import pytest
from rich.console import Console

from cluster import logs


def run_bar(total: int) -> int:
    with logs.progress(total, "embed", "images") as advance:
        for _ in range(total + 1):
            advance(1, loss=0.5)
        advance(0)
    return total


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_takes_any_total_from_any_thread(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=StringIO(), force_terminal=is_terminal)
    monkeypatch.setattr(logs, "console", lambda: terminal)
    totals = [0, 1, 7, 100] * 3
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(run_bar, totals)) == totals
    assert run_bar(3) == 3


def test_a_total_that_is_too_small_grows_in_few_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logs, "console", lambda: Console(file=StringIO()))
    with caplog.at_level(logging.INFO), logs.progress(8, "embed", "images") as advance:
        for _ in range(13):
            advance()
    assert [message.split()[1] for message in caplog.messages] == [
        f"done={n}" for n in ("2/8", "4/8", "6/8", "8/8", "10/10", "12/12")
    ]


def test_progress_lets_an_error_of_the_work_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=StringIO(), force_terminal=True)
    monkeypatch.setattr(logs, "console", lambda: terminal)
    with pytest.raises(KeyError), logs.progress(3, "embed"):
        raise KeyError
    assert run_bar(2) == 2
