"""A role that listens: one port, one thread per visitor, alive whatever comes in."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

from pqi.net.channel import Channel
from pqi.net.errors import NetError
from pqi.net.hello import Hello, answer, hear
from pqi.net.listener import Listener
from pqi.session.bundle import Address, Bundle
from pqi.session.errors import SessionError
from pqi.session.serving import Patience

log = logging.getLogger("pqi.server")
P = TypeVar("P", bound="Port")


class Port(ABC):
    """What every server has in common. Start it, and stop it or use it as a context manager.

    A server makes its listener last in its constructor, with ``_serve`` as what to do with a visitor.
    """

    role: str
    patience: Patience
    max_batch: int
    _listener: Listener

    def __enter__(self: P) -> P:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def address(self) -> Address:
        """Where this server listens."""
        return self._listener.address

    def start(self) -> None:
        """Begin to serve."""
        self._listener.start()
        log.info("%s listens at %s port %d", self.role, *self.address)

    @abstractmethod
    def stop(self) -> None:
        """Break every session and give up what they used."""

    @abstractmethod
    def _converse(self, channel: Channel) -> None:
        """Hear who it is (the certificate's word), compare what both hold, and do what that role may ask."""

    def _serve(self, channel: Channel) -> None:
        """One visitor from hello to end; on an error it hears the cause. Nothing it does ends the server."""
        try:
            self._converse(channel)
        except (NetError, SessionError) as error:
            if not self._listener.stopping:
                log.warning("%s: link with %s ended: %s", self.role, channel.peer, error)
            channel.close_with_cause(str(error))

    def _greeted(self, channel: Channel, bundle: Bundle, digest: str) -> Mapping[str, Any]:
        """The visitor's hello, compared with what this server holds and answered. Raises HandshakeMismatch."""
        theirs = hear(channel, self.patience.step)
        mine = Hello(self.role, bundle.deployment, digest, theirs["session"])
        answer(channel, mine, theirs, self.patience.step, max_batch=self.max_batch)
        return theirs
