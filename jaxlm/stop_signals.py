"""Signals that ask a training run to stop, checked between its steps."""

import signal
import threading


class StopSignals:
    """Turns SIGINT and SIGTERM into a request that is checked between steps. A second signal stops at once."""

    def __enter__(self) -> "StopSignals":
        self.requested = False
        is_main = threading.current_thread() is threading.main_thread()  # only it may handle signals
        signals = (signal.SIGINT, signal.SIGTERM) if is_main else ()
        self.before = {name: signal.signal(name, self._request) for name in signals}
        return self

    def raise_if_requested(self) -> None:
        """Raises `KeyboardInterrupt` if a signal came."""
        if self.requested:
            raise KeyboardInterrupt

    def _request(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_: object) -> None:
        for name, handler in self.before.items():
            signal.signal(name, handler)
