"""Run a notebook's cells in this process, in IPython's shell, and keep what they show.

    python lessons/workshop/execute.py ASKED.ipynb RAN.ipynb

make.py starts this once for each lesson. There is no Jupyter kernel: its messages travel over sockets, and a
reply of a cell with sliders, whose widget sends messages of its own, got lost now and then, so that the cell
seemed to hang. Here a cell is a function call. Sliders are not made, as a page cannot run them anyway:
workbench.slider shows a sentence.
"""

from __future__ import annotations

import base64
import io
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from nbformat import NotebookNode
from traitlets import Type
from traitlets.config import Config

FAILED = 3  # the exit status if a cell raises: RAN.ipynb then ends with its traceback


class Stream(io.TextIOBase):
    """sys.stdout or sys.stderr of a cell: what is written becomes the cell's output."""

    def __init__(self, name: str, outputs: list[NotebookNode]) -> None:
        self.name, self.outputs = name, outputs

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        last = self.outputs[-1] if self.outputs else {}
        if last.get("name") == self.name:
            last.text += text
        elif text:
            self.outputs.append(nbformat.v4.new_output("stream", name=self.name, text=text))
        return len(text)


class Hook(DisplayHook):
    """Keeps the value of a cell's last line."""

    def write_output_prompt(self) -> None:
        pass

    def write_format_data(self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None) -> None:
        count = self.prompt_count
        self.shell.outputs.append(_shown("execute_result", format_dict, md_dict, execution_count=count))

    def finish_displayhook(self) -> None:
        self._is_active = False


class Publisher(DisplayPublisher):
    """Keeps what a cell displays, as pictures are."""

    def publish(self, data: dict[str, Any], metadata: dict[str, Any] | None = None, **options: Any) -> None:
        if options.get("update"):
            raise NotImplementedError("a lesson's page cannot show an output that changes")
        self.shell.outputs.append(_shown("display_data", data, metadata))

    def clear_output(self, wait: bool = False) -> None:
        self.shell.outputs.clear()


class Shell(InteractiveShell):
    """IPython's shell, whose cells' outputs are in `outputs`."""

    displayhook_class = Type(Hook)
    display_pub_class = Type(Publisher)
    outputs: list[NotebookNode]

    def showtraceback(self, *args: Any, **options: Any) -> None:
        pass  # `ran` keeps it


def _shown(kind: str, data: dict[str, Any], metadata: dict[str, Any] | None, **more: Any) -> NotebookNode:
    texts = {
        mime: base64.b64encode(x).decode("ascii") if isinstance(x, bytes) else x for mime, x in data.items()
    }
    return nbformat.v4.new_output(kind, data=texts, metadata=metadata or {}, **more)


def ran(notebook: NotebookNode) -> bool:
    """Run the code cells in order, up to one that raises; False if one does.

    Cells get their outputs and execution counts, and in their metadata `seconds`, which make.py takes out
    again: CPU time, that of other processes included, and wall time.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = Config(HistoryManager={"enabled": False}, InteractiveShell={"colors": "nocolor"})
        shell = Shell.instance(ipython_dir=folder, config=config)
        for cell in notebook.cells:
            if cell.cell_type == "code" and not _run(shell, cell):
                return False
    return True


def _run(shell: Shell, cell: NotebookNode) -> bool:
    shell.outputs = []
    started, standard = _seconds(), (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = (Stream(name, shell.outputs) for name in ("stdout", "stderr"))
    try:
        result = shell.run_cell(cell.source, store_history=True)
    finally:
        sys.stdout, sys.stderr = standard
    cell.outputs, cell.execution_count = shell.outputs, result.execution_count
    cell.metadata["seconds"] = [now - before for now, before in zip(_seconds(), started, strict=True)]
    error = result.error_before_exec or result.error_in_exec
    if error is not None:
        lines = traceback.format_exception(error)
        cell.outputs.append(
            nbformat.v4.new_output("error", ename=type(error).__name__, evalue=str(error), traceback=lines)
        )
    return error is None


def _seconds() -> tuple[float, float]:
    """CPU time of this process and of those that it has started, and wall time."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(each.ru_utime + each.ru_stime for each in used)
    for process in multiprocessing.active_children():  # apart.py's; it has to be waited for to count above
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        cpu += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # its time and its children's
    return cpu, time.perf_counter()


def main(asked: str, out: str) -> int:
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as Jupyter's kernel does
    notebook = nbformat.read(asked, as_version=4)
    good = ran(notebook)
    nbformat.write(notebook, out)
    return 0 if good else FAILED


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
