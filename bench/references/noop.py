"""HTTP layer's limit: a route that reads the body and answers, on the same server, without middleware."""

from __future__ import annotations

from typing import Any

import falcon
import falcon.asgi


class Nothing:
    """`POST /api/leads` that ignores the body."""

    async def on_post(self, request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        """Answer 202."""
        await request.stream.read()
        response.status = falcon.HTTP_202
        response.media = {"id": "00000000-0000-0000-0000-000000000000", "status": "accepted"}


def create() -> falcon.asgi.App[Any, Any]:
    """Return the application."""
    app = falcon.asgi.App()
    app.add_route("/api/leads", Nothing())
    return app
