"""What a signal handler raises reaches those who answer it."""

from contextlib import AbstractContextManager

import pytest

from cluster.endings import StoppedError, stop_on_signals, unmasked

MASK = "<cyfunction CoreWorker.wait> returned a result with an exception set"


@pytest.mark.parametrize("body", [unmasked, stop_on_signals])
@pytest.mark.parametrize("raised", [StoppedError("asked to stop by SIGTERM"), KeyboardInterrupt()])
def test_an_exception_of_a_handler_inside_c_code_comes_out_as_itself(
    body: type[AbstractContextManager[None]], raised: BaseException
) -> None:
    with pytest.raises(type(raised)) as caught, body():
        raise SystemError(MASK) from raised
    assert caught.value is raised


def test_other_errors_of_c_code_stay_what_they_are() -> None:
    with pytest.raises(SystemError, match="broken"), unmasked():
        raise SystemError("broken") from ValueError("5")
