"""Serving the page: on this machine only, with nothing from outside."""

from __future__ import annotations

import os
import re
import socket
import sys
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from efface.errors import UserError, escaped
from efface.page import files
from efface.page.desk import Desk
from efface.page.places import Places
from efface.storage import locked, make_folder

HOST = "127.0.0.1"
HINT = "the page needs Gradio: pip install 'efface[page]'."
PORTS = range(7860, 7880)
"""Tried in order, where nobody names one."""
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'self'"
)
"""What the browser may load: nothing from elsewhere."""


def quiet(places: Places) -> dict[str, str]:
    """Settings of the environment: no reports to anybody, and files only in the start folder."""
    return {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(places.own / "gradio"),
        "HF_HUB_OFFLINE": "1",
        "EFFACE_CACHE": os.environ.get("EFFACE_CACHE", str(places.own / "cache")),
    }


def listening(port: int | None) -> socket.socket:
    """A socket of this machine that waits for browsers.

    Args:
        port: 0: any that is free; None: the first free one of :data:`PORTS`.

    Raises:
        UserError: it is taken, or not allowed.
    """
    some: Sequence[int] = PORTS if port is None else [port]
    why = ""
    for number in some:
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name == "posix")
        try:
            found.bind((HOST, number))
            found.listen(64)
            return found
        except (OSError, OverflowError) as e:
            found.close()
            why = getattr(e, "strerror", None) or str(e)
    asked = f"port {some[0]}" if len(some) == 1 else f"ports {some[0]} to {some[-1]}"
    raise UserError(
        f"cannot serve the page on {asked}: {why}. Give another: --port 0 takes a free one."
    )


def display() -> bool:
    """Whether there is a screen that a browser could open on."""
    if sys.platform.startswith("linux"):
        return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return True


def application(desk: Desk) -> Any:
    """The page and its files, as an ASGI application.

    Raises:
        UserError: Gradio is missing.
    """
    if find_spec("gradio") is None:
        raise UserError(HINT)
    import gradio as gr
    from fastapi import FastAPI

    from efface.page.app import SCRIPT, STYLE, page, theme

    base = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    serve_files(base, desk)
    script = f"<script>{SCRIPT.read_text(encoding='utf8')}</script>"
    app = gr.mount_gradio_app(
        base,
        page(desk),
        path="/",
        theme=theme(),
        css=STYLE.read_text(encoding="utf8"),
        head=script,
        ssr_mode=False,
        footer_links=[],
        allowed_paths=[],
        max_file_size=1,
    )
    return Guard(app)


def serve_files(base: Any, desk: Desk) -> None:
    """The addresses of pictures, and of what is taken away."""
    from fastapi import Response
    from fastapi.responses import FileResponse

    def sent(find: Callable[[], Path], away: bool = False) -> Any:
        try:
            path = find()
        except (UserError, OSError) as e:
            return Response(escaped(str(e)), 404, media_type="text/plain")
        if path.suffix == ".png":
            return FileResponse(path, media_type="image/png")
        kind = "application/octet-stream" if away else "text/plain"
        return FileResponse(path, media_type=kind, filename=path.name)

    def picture(name: str) -> Any:
        return sent(lambda: files.picture(desk, name))

    def live(job: str, name: str) -> Any:
        return sent(lambda: files.live(desk, job, name))

    def take(key: str, name: str) -> Any:
        return sent(lambda: files.taken(desk, key, name), away=True)

    def find(key: str, folder: str, name: str) -> Any:
        return sent(lambda: files.found(desk, key, folder, name))

    base.add_api_route("/efface/picture/{name}", picture)
    base.add_api_route("/efface/live/{job}/{name}", live)
    base.add_api_route("/efface/take/{key}/{name}", take)
    base.add_api_route("/efface/take/{key}/{folder}/{name}", find)


BARRED = ("/upload", "/file=", "/proxy=", "/stream/")
"""In addresses of Gradio's that the page has no use for."""


class Guard:
    """Lets in what a browser on this machine asks this page, and no upload."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":  # and no sockets: the page needs none
                await self.app(scope, receive, send)
            return
        told = {k.decode().lower(): v.decode("latin-1") for k, v in scope["headers"]}
        why = refused(str(scope["path"]), told)
        if why:
            body = why.encode()
            head = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 403, "headers": head})
            await send({"type": "http.response.body", "body": body})
            return

        async def guarded(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                more = [
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        await self.app(scope, receive, guarded)


def refused(path: str, headers: Mapping[str, str]) -> str:
    """Why a request is not answered; "": it is.

    Another name for this machine may be anybody's (DNS rebinding), and another page's scripts have
    no business here.
    """
    own = re.compile(r"(https?://)?(127\.0\.0\.1|localhost)(:\d+)?")
    if not own.fullmatch(headers.get("host", "")):
        return "this page answers to 127.0.0.1 and localhost only."
    if "origin" in headers and not own.fullmatch(headers["origin"]):
        return "this page answers to itself only."
    if any(x in path for x in BARRED):
        return "this page takes no files, and gives its own only."
    return ""


def serve(
    places: Places,
    port: int | None = None,
    browser: bool = True,
    ready: Callable[[str], None] = print,
) -> int:
    """Serve the page until it is stopped from the keyboard; jobs go on.

    Args:
        port: see :func:`listening`.
        browser: open one, where there is a screen.
        ready: is told the address.

    Raises:
        UserError: no Gradio, no port, or a folder that cannot be written.
    """
    if find_spec("gradio") is None:
        raise UserError(HINT)
    os.environ.update(quiet(places))
    make_folder(places.own / "gradio")
    found = listening(port)
    address = f"http://{HOST}:{found.getsockname()[1]}"
    desk = Desk(places)
    desk.shelf.sweep()
    app = application(desk)
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    ready(address)
    if browser and not (display() and webbrowser.open(address)):
        print(
            "efface: there is no screen here to open a browser on: open the address yourself.",
            file=sys.stderr,
        )
    if desk.other():
        print(f"efface: {desk.other()}", file=sys.stderr)
        serve_on(server, found)
    else:
        with locked(places.own):
            serve_on(server, found)
    return 0


def serve_on(server: Any, found: socket.socket) -> None:
    """Run a server on a socket until it is stopped."""
    with suppress(KeyboardInterrupt):
        server.run(sockets=[found])
