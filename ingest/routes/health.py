"""Health routes: readiness to accept forms, and liveness."""

from __future__ import annotations

from secrets import token_hex

import falcon
import falcon.asgi

from ingest.submissions.service import SubmissionService
from nigredo.components import CREATE_LEAD
from nigredo.observability.logs import OUTPUT
from nigredo.settings import Settings

Request = falcon.asgi.Request
Response = falcon.asgi.Response


class HealthRoute:
    """`/health`, `/health/ready`: whether this worker accepts forms now."""

    def __init__(self, settings: Settings, intake: SubmissionService) -> None:
        self._function = settings.function(CREATE_LEAD)
        self._workers = settings.ingest_workers
        self._submissions = intake
        # Distinguishes the workers that answer at one address.
        self._worker = token_hex(4)

    async def on_get(self, _: Request, response: Response) -> None:
        """Answer 200 when ready, else 503 with the missing dependency as `waiting_for`."""
        reason = await self._submissions.check()
        response.status = falcon.HTTP_200 if reason is None else falcon.HTTP_503
        status = "ok" if reason is None else "waiting"
        document: dict[str, object] = {
            "status": status,
            "function": self._function,
            "waiting_for": reason,
            "log_lines_dropped": OUTPUT.dropped,
            "control": {"worker": self._worker, "workers": self._workers, "applied": self._submissions.control_applied},
        }
        if (spool := self._submissions.spool) is not None:
            document["spool"] = {
                "records": spool.records,
                "bytes": spool.bytes,
                "oldest_age_s": round(spool.oldest_age_s, 1),
                "refused": spool.refused,
            }
        response.media = document

    on_head = on_get


class LiveRoute:
    """`/health/live`: whether the process answers, independently of Kafka."""

    async def on_get(self, _: Request, response: Response) -> None:
        """Answer 200."""
        response.media = {"status": "ok"}

    on_head = on_get
