"""Supervision of one of several processes: it exits when another one dies, and its parent reports the error."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable

from jaxlm.errors import reason

CHILD = "JAXLM_PARENT"  # environment variable with the process id of the parent
PEER_DIED = 3  # exit code
MESSAGE = "a process of this run has died; start all of them again with the same command to resume the run"


def supervise() -> int:
    """Runs the same command line in a child process, since JAX may abort it silently; returns the exit code."""
    environment = os.environ | {CHILD: str(os.getpid()), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "jaxlm", *sys.argv[1:]]
    shown = None if sys.stderr.isatty() else subprocess.PIPE  # a progress bar needs the terminal itself
    with subprocess.Popen(command, env=environment, stderr=shown, text=True, errors="replace") as child:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda number, _: child.send_signal(number))
        for line in child.stderr or ():
            if re.match(r"F\d{4} ", line):  # the reason of an abort, followed by a C++ stack trace
                break
            sys.stderr.write(line)
            sys.stderr.flush()
        code = child.wait()
    if code < 0 or code == PEER_DIED:
        print(f"error: {MESSAGE}", file=sys.stderr)
        return PEER_DIED
    return code


def run_supervised(run: Callable[[], int]) -> None:
    """Runs a command line in a child process; ends it without waiting for processes that may be dead."""
    threading.Thread(target=_end_with_parent, args=(int(os.environ[CHILD]),), daemon=True).start()
    try:
        code = run()
    except Exception as error:
        from jaxlm.parallel.processes import is_peer_death

        if is_peer_death(error):
            print(f"JAX: {reason(error)}", file=sys.stderr)
            code = PEER_DIED  # which the parent reports
        else:
            traceback.print_exc()
            code = 1
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(PEER_DIED)
