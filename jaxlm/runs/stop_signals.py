"""`StopSignals`: SIGINT and SIGTERM, checked between training steps."""

import signal
import threading
import time

SAME_SIGNAL = 1.0  # seconds within which two signals count as one, such as one that a parent process passes on


class StopSignals:
    """Context in which SIGINT and SIGTERM set `requested`. A second signal stops at once."""

    def __enter__(self) -> "StopSignals":
        self.requested, self.requested_at = False, 0.0
        is_main = threading.current_thread() is threading.main_thread()  # only it may handle signals
        signals = (signal.SIGINT, signal.SIGTERM) if is_main else ()
        self.before = {name: signal.signal(name, self._request) for name in signals}
        return self

    def raise_if_requested(self) -> None:
        """Raises `KeyboardInterrupt` if a signal came."""
        if self.requested:
            raise KeyboardInterrupt

    def _request(self, *_: object) -> None:
        now = time.monotonic()
        if self.requested and now - self.requested_at > SAME_SIGNAL:
            raise KeyboardInterrupt
        self.requested, self.requested_at = True, now

    def __exit__(self, *_: object) -> None:
        for name, handler in self.before.items():
            signal.signal(name, handler)
