"""`danlu ui`: a site -> pages that are served until they are told to stop."""

from __future__ import annotations

import os
from types import FrameType

import uvicorn

from danlu.hub import Say
from danlu.serve.keys import with_key
from danlu.serve.options import ServeOptions
from danlu.serve.server import listen
from danlu.ui.app import make_pages
from danlu.ui.guard import ROOT
from danlu.ui.options import is_loopback
from danlu.ui.site import Site

_PATIENCE_SECONDS = 3  # for requests that run when the pages are told to stop


class Server(uvicorn.Server):
    """uvicorn, which says where the pages are, and ends their streams first."""

    def __init__(self, config: uvicorn.Config, site: Site) -> None:
        super().__init__(config)
        self._site = site

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As it was told: the process ends with 0, where uvicorn would send itself the signal again."""
        self._site.closing.set()
        self.force_exit = self.should_exit
        self.should_exit = True


def serve_pages(site: Site, listening: ServeOptions, say: Say) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises ConfigError for an address that a network sees without a key, ResourceError for one that is taken.
    """
    listening = with_key(listening, os.environ)
    app = make_pages(site, listening)
    try:
        with listen(listening) as taken:
            host, port = taken.getsockname()[:2]
            shown = "127.0.0.1" if is_loopback(listening.host) else f"[{host}]" if ":" in host else host
            say(f"pages: http://{shown}:{port}{ROOT}/runs")
            config = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=_PATIENCE_SECONDS,
            )
            Server(config, site).run(sockets=[taken])
    finally:
        site.close()
