"""The process that forks the children of ``tests.forks``; it is started as ``python -m tests.fork_server DESCRIPTOR``.

It is single-threaded, and reads requests from the socket that it is given until the other end is closed. For each it
forks a monitor; the monitor forks the child, reports its process id, waits for its end, and reports the exit code.
"""

import contextlib
import gc
import io
import json
import os
import runpy
import socket
import sys
import threading
import warnings
from importlib import import_module
from typing import Any, Final

LENGTH: Final = 8  # bytes that hold the length of a request
DESCRIPTORS: Final = 4  # that come with a request: the socket to report to, stdin, stdout, stderr


def serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork a child for each request.

    Returns:
        In the child, its request; in the server None, once nobody can send requests any more.
    """
    while True:
        received = _receive(control)
        _reap()
        if received is None:
            return None
        request, descriptors = received
        for module in request["imports"]:
            _import(module)
        if os.fork() == 0:
            control.close()
            _monitor(request, *descriptors)
            return request
        for descriptor in descriptors:
            os.close(descriptor)


def run(request: dict[str, Any]) -> None:
    """Run the code of a request as the interpreter would run it."""
    if request["code"] is None:
        sys.argv[1:] = request["arguments"]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = ["-c", *request["arguments"]]
        exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102  (a test's own code)


def _receive(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    head, descriptors, _, _ = socket.recv_fds(control, LENGTH, DESCRIPTORS)
    if not head:
        return None
    with control.makefile("rb", buffering=0) as stream:
        rest = int(head)
        body = b""
        while len(body) < rest:
            body += stream.read(rest - len(body)) or b""
    return json.loads(body), descriptors


def _reap() -> None:
    """Reap the monitors that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _import(module: str) -> None:
    if module in sys.modules:
        return
    # A module that can't be imported fails again in the child, where the test sees it.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_module(module)
    assert threading.active_count() == 1, f"{module} starts threads: it can't be imported before a fork"
    gc.collect()
    gc.freeze()


def _monitor(request: dict[str, Any], report_to: int, *descriptors: int) -> None:
    """Fork the child, in which this returns, and report what becomes of it."""
    report = socket.socket(fileno=report_to)
    child = os.fork()
    if child == 0:
        report.close()
        _become(request, descriptors)
        return
    for descriptor in descriptors:
        os.close(descriptor)
    report.sendall(f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):  # the test did not wait for it
        report.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(request: dict[str, Any], descriptors: tuple[int, ...]) -> None:
    """Take over the descriptors, the working directory and the environment of a request."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _stream(number, getattr(sys, name))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _stream(number: int, like: io.TextIOWrapper) -> io.TextIOWrapper:
    """Open a standard stream as the interpreter does when it starts."""
    buffering = 0 if number and "PYTHONUNBUFFERED" in os.environ else -1
    # The descriptor stays open, like those of the interpreter's own streams.
    binary: Any = open(number, "wb" if number else "rb", buffering, closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(
        binary,
        encoding=like.encoding,
        errors=like.errors,
        newline="\n" if number else None,
        line_buffering=buffering != 0 and (number == 2 or os.isatty(number)),
        write_through=buffering == 0,
    )


if __name__ == "__main__":
    mine = serve(socket.socket(fileno=int(sys.argv[1])))
    if mine is not None:
        run(mine)
