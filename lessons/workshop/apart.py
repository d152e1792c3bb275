"""A process of its own for what may crash or hang: a broken kernel must not end the notebook that runs it.

The process is started once, as importing PyTorch takes seconds, and again only after it has crashed or hung.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

SECONDS = 200  # less than a lesson has in make.py, more than a kernel's compile and its schedules take

_context = multiprocessing.get_context("spawn")  # a fork would have the notebook's locks without its threads
_worker: tuple[Any, Connection] | None = None


class Ended(Exception):
    """The process has crashed or did not answer in time; the message says which."""


def call(function: Callable[..., Any], *args: object, seconds: float = SECONDS) -> Any:
    """function(*args), computed in the other process; all of it has to be picklable.

    What the function raises is raised here. Ended where it gives no answer.
    """
    global _worker
    if _worker is None or not _worker[0].is_alive():
        here, there = _context.Pipe()
        process = _context.Process(target=_serve, args=(there,), daemon=True)
        process.start()
        there.close()
        _worker = process, here
    process, pipe = _worker
    try:
        pipe.send((function, args))
        if not pipe.poll(seconds):
            raise Ended(f"it gave no answer in {seconds:g} s, and was ended")
        returned, answer = pipe.recv()
    except (EOFError, ConnectionError):
        _worker = None
        process.join()
        raise Ended(f"its process ended: {_reason(process.exitcode)}") from None
    except BaseException:  # an interrupt, too: the next call must not get this one's answer
        _worker = None
        process.kill()
        raise
    if returned:
        return answer
    raise answer


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the notebook's interrupt: it ends this process itself
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:  # the notebook has ended
            return
        try:
            answer = True, function(*args)
        except Exception as error:
            answer = False, error
        pipe.send(answer)


def _reason(exitcode: int) -> str:
    return f"signal {-exitcode}, {signal.Signals(-exitcode).name}" if exitcode < 0 else f"status {exitcode}"
