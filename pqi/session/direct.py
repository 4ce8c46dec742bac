"""Server B in the client's own process: the direct topology, in which client and model owner compute with each other.

Meant for weights that server A owns: what server B holds of them is masked and tells its holder nothing, and it hears
nothing online that the client could not work out from its input and its answer. The dealer still deals beforehand, so
server B listens where the split says, and the dealer and server A must reach it there.
"""

from __future__ import annotations

import time
from pathlib import Path

from pqi.net.link import NONE, Link
from pqi.net.tls import format_address
from pqi.session.bundle import Address, ClientBundle, KeyedClientBundle, ServerBundle, load_server
from pqi.session.errors import BundleError, MaterialMissing
from pqi.session.roles import SERVER_B
from pqi.session.server import ComputeServer, ServerOptions

_DEALER_SECONDS = 30.0
_TICK = 0.02
_HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (read from the bundle, not bound here)


class OwnServer:
    """Server B for one client; it runs from :meth:`start` to :meth:`stop`, and can be started again.

    directory: its bundle, with its keys. Raises BundleError unless it is server B of the client's deployment.
    """

    def __init__(self, directory: Path, client: ClientBundle | KeyedClientBundle, link: Link = NONE) -> None:
        bundle = load_server(directory)
        if not isinstance(bundle, ServerBundle) or bundle.role != SERVER_B:
            raise BundleError(f"{directory} is the bundle of {bundle.role}; a client can run {SERVER_B} only")
        if (bundle.deployment, bundle.program.digest) != (client.deployment, client.program.digest):
            raise BundleError(f"{directory} is of another split than {client.directory}; both must come from one")
        self._bundle, self._options = bundle, ServerOptions(link=link)
        self._server: ComputeServer | None = None

    @property
    def address(self) -> Address:
        """Where the client finds it."""
        host, port = self._bundle.addresses[SERVER_B]
        return _HERE.get(host, host), port

    def start(self) -> None:
        """Listen, and wait until the dealer has delivered; nothing if it runs already.

        Raises JournalError, CannotListen, and MaterialMissing if no dealer comes within half a minute.
        """
        if self._server is not None:
            return
        self._server = ComputeServer(self._bundle, options=self._options)
        try:
            self._server.start()
            deadline = time.monotonic() + _DEALER_SECONDS
            while not self._server.status()["level"]:
                if time.monotonic() > deadline:
                    raise MaterialMissing(
                        f"no dealer has delivered to {SERVER_B} at {format_address(self._server.address)} within "
                        f"{_DEALER_SECONDS:g} s. Is `pqi deal` running, and can it reach that address and server_a?"
                    )
                time.sleep(_TICK)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop listening; unused material is burnt. Calling it twice is harmless."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()
