"""A real browser on pages of a real server, for the tests that look at what a person sees."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import uvicorn
from waiting import wait_until

from danlu.serve.options import ServeOptions
from danlu.serve.server import listen
from danlu.ui.app import make_pages
from danlu.ui.command import Server

# Debian's, Ubuntu's and others' names; $DANLU_CHROMIUM is the path of another one.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OF_MACOS = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"


def chromium():
    """The path of a browser, or None."""
    named = os.environ.get("DANLU_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, NAMES)), None)
    return found or (_OF_MACOS if Path(_OF_MACOS).exists() else None)


class Served:
    """Pages on a loopback port, which can be stopped and begun again there."""

    def __init__(self, make_site, **listening):
        self._make_site, self._listening, self.port = make_site, listening, 0
        self.begin()

    def begin(self):
        self.site = self._make_site()
        options = ServeOptions(port=self.port, **self._listening)
        self._taken = listen(options)
        self.port = self._taken.getsockname()[1]
        app = make_pages(self.site, options)
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        self._server = Server(config, self.site)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._taken]})
        self._thread.start()
        wait_until(lambda: self._server.started)

    def end(self):
        self.site.close()
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._taken.close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/ui"
