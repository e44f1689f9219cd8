"""How long a data worker lives: as long as the process that it works for, whatever happens to either."""

import multiprocessing
import os
import signal
import threading

number: int | None = None  # of this worker among its fellows, from 0; None in any other process


def serve(own_number: int = 0, workers: int = 1) -> None:
    """First thing in a worker: it ends with the process that it works for, even by kill -9, and not before.

    SIGTERM and Ctrl-C often go to all processes of a job; only that one can act on them, and needs data until it has.
    The arguments are what Grain hands over.
    """
    global number
    number = own_number
    for notice in (signal.SIGINT, signal.SIGTERM):
        signal.signal(notice, signal.SIG_IGN)
    master = multiprocessing.parent_process()
    if master is None:
        raise RuntimeError("serve() is for a process that multiprocessing started")

    def follow() -> None:
        master.join()
        os._exit(1)

    threading.Thread(target=follow, name="follow", daemon=True).start()
