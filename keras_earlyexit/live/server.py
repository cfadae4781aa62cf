"""Serves the page on this machine, and to nobody else."""

import contextlib
import socket

from keras_earlyexit.live import page

_HOSTS = ["127.0.0.1", "localhost"]
# Gradio's scripts are in the page, and its template names fonts and scripts
# of others: the browser is not to ask for them.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' "
    "blob:; worker-src 'self' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' "
    "blob:; connect-src 'self' blob: data:; frame-ancestors 'none'"
)


@contextlib.contextmanager
def listening(port=0):
    """A socket on the loopback address, for `serve`.

    Args:
        port: Its port; 0 lets the system choose.

    Raises:
        OSError: If the port is taken.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HOSTS[0], port))
        listener.listen()
        yield listener


def serve(blocks, listener, ready=lambda url: None):
    """Serves a page until the process is told to stop.

    Args:
        blocks: What `page.build` made.
        listener: What `listening` gave.
        ready: Called with the address of the page when it can be opened.
    """
    import fastapi
    import gradio as gr
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def forbid_others(request, call_next):
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    # A page elsewhere can point its own name here.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS)
    blocks.queue(default_concurrency_limit=1)
    app = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        max_file_size="8mb",
        ssr_mode=False,
        show_error=True,
        **page.style(),
    )
    url = f"http://{_HOSTS[0]}:{listener.getsockname()[1]}/"
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    # Whoever comes now waits for a moment.
    ready(url)
    server.run(sockets=[listener])
