"""HTTP as uvicorn speaks it, for clients that never finish the head of a request."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT = 20.0
"""Seconds, unless a subclass says otherwise."""


class PatientProtocol(H11Protocol):
    """Closes a connection whose next request has been begun, or not even that, and does not arrive.

    uvicorn itself closes what has been idle since an answer; before the first request, and within the head of one,
    it would wait for ever.
    """

    head_timeout = HEAD_TIMEOUT

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client is there; its request has to follow."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Something came; it may be the rest of a head."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._head_timer is None and self.timeout_keep_alive_task is None:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._stop()
        self._head_timer = self.loop.call_later(self.head_timeout, self._give_up)

    def _stop(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


def patient_protocol(seconds: float) -> type[PatientProtocol]:
    """The protocol with another time limit."""
    return type("PatientProtocol", (PatientProtocol,), {"head_timeout": seconds})


__all__ = ["PatientProtocol", "patient_protocol"]
