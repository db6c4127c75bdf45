"""Errors that are neither the user's (ValueError) nor the world's (RuntimeError)."""

import signal


class Lost(RuntimeError):
    """A process of the run is gone. The run goes on where it can be replaced."""

    def __init__(self, who: str, why: str) -> None:
        super().__init__(f"{who}: {why}")
        self.who = who.partition(",")[0]
        """Like `sampler/1`."""


class Stopped(Exception):
    """A signal ended the run."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def first_failure(group: BaseExceptionGroup) -> BaseException:
    """The first leaf of a tree of errors: what failed first, before others failed because of it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
