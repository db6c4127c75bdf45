"""Errors that are neither the user's (ValueError) nor the world's (RuntimeError)."""

import signal


class Stopped(Exception):
    """A signal ended the run."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number
