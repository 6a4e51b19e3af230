"""Requests over HTTP that end when their time is over, whatever the other side does.

    opener = urllib.request.build_opener(TimedHTTP, TimedHTTPS)
    with Clock(60) as clock, opener.open(TimedRequest(clock, url), timeout=60) as response:
        response.read()

A socket's timeout begins anew with every byte, so that a header in drips, or one status of 100
after another, would hold a request without end.
"""

import contextlib
import http.client
import socket
import threading
import urllib.error
import urllib.request
from types import TracebackType
from typing import Any, Self


class Clock:
    """Cuts the line of a request when its time is over. A context manager.

    Args:
        seconds: from here to the end of the context.

    Raises:
        TimeoutError: at the end of the context, if the line was cut; not in the place of a
            `URLError`, which says that nothing was sent, or what came of it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_over = False
        self._line: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def watch(self, line: socket.socket) -> None:
        """The connection that is cut."""
        with self._lock:
            # TLS takes the socket away from whoever holds it; of the connection this is another.
            self._line = line.dup()
            if self._is_over:
                self._cut()

    def _end(self) -> None:
        with self._lock:
            self._is_over = True
            self._cut()

    def _cut(self) -> None:
        if self._line is not None:
            with contextlib.suppress(OSError):
                self._line.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        with self._lock:
            if self._line is not None:
                self._line.close()
                self._line = None
        if self._is_over and not isinstance(error, urllib.error.URLError):
            raise TimeoutError(
                f"an answer that took more than {self._seconds:g} s to come"
            ) from None


class TimedRequest(urllib.request.Request):
    """A request, and the clock that it ends by."""

    def __init__(self, clock: Clock, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clock = clock


class _Line(http.client.HTTPConnection):
    clock: Clock

    def connect(self) -> None:
        super().connect()
        self.clock.watch(self.sock)


class _SecureLine(http.client.HTTPSConnection, _Line):
    """Connects as a `_Line`, and begins TLS on it: a handshake may come in drips, too."""


class TimedHTTP(urllib.request.HTTPHandler):
    """Opens what begins with http:// by the clock of its request."""

    def http_open(self, req: Any) -> http.client.HTTPResponse:
        """For the opener."""
        return self.do_open(_by_clock(_Line, req.clock), req)


class TimedHTTPS(urllib.request.HTTPSHandler):
    """Opens what begins with https:// by the clock of its request."""

    def https_open(self, req: Any) -> http.client.HTTPResponse:
        """For the opener."""
        return self.do_open(_by_clock(_SecureLine, req.clock), req)


def _by_clock(kind: type[_Line], clock: Clock) -> Any:
    def line(host: str, **how: Any) -> _Line:
        made = kind(host, **how)
        made.clock = clock
        return made

    return line
