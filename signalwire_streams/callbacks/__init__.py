"""Status callbacks: verify, parse and receive them.

In aiohttp, `CallbackReceiver` does all of it. Elsewhere, verify the raw request, then parse it. In FastAPI
or Starlette::

    import json
    from urllib.parse import parse_qsl

    from fastapi import BackgroundTasks, FastAPI, Request, Response
    from signalwire_streams.callbacks import parse_callback, verify_signature

    STATUS_CALLBACK = "https://example.com/callbacks"  # as given to the platform, without a query
    app = FastAPI()


    @app.post("/callbacks")
    async def callbacks(request: Request, tasks: BackgroundTasks) -> Response:
        query = request.scope["query_string"].decode("latin-1")  # raw; a parsed one may differ
        body = await request.body()
        url = f"{STATUS_CALLBACK}?{query}" if query else STATUS_CALLBACK
        if not verify_signature(url=url, headers=request.headers, body=body, keys=["PSK_..."]):
            return Response(status_code=403)
        is_json = body.lstrip().startswith(b"{")  # from streams that the Calling API or SWML started
        fields = json.loads(body) if is_json else parse_qsl(body.decode(), keep_blank_values=True)
        tasks.add_task(on_callback, parse_callback(fields))
        return Response(status_code=204)  # sent before the task runs; the platform waits 5 seconds

Callbacks by GET have no body: pass ``method="GET"``, and parse ``parse_qsl(query, keep_blank_values=True)``.

If a genuine signature is rejected, `diagnose_signature` tries what proxies usually change and says what to do.
"""

from signalwire_streams.callbacks._diagnostics import SignatureDiagnosis, diagnose_signature
from signalwire_streams.callbacks._events import (
    CallbackEvent,
    CallStreamChanged,
    CallStreamState,
    StreamFailed,
    StreamStarted,
    StreamStopped,
    UnknownCallback,
    parse_callback,
)
from signalwire_streams.callbacks._receiver import CallbackHandler, CallbackReceiver, CallbackStatistics
from signalwire_streams.callbacks._signature import SHA256_SIGNATURE_HEADER, SIGNATURE_HEADER, sign, verify_signature

__all__ = [
    "SHA256_SIGNATURE_HEADER",
    "SIGNATURE_HEADER",
    "CallStreamChanged",
    "CallStreamState",
    "CallbackEvent",
    "CallbackHandler",
    "CallbackReceiver",
    "CallbackStatistics",
    "SignatureDiagnosis",
    "StreamFailed",
    "StreamStarted",
    "StreamStopped",
    "UnknownCallback",
    "diagnose_signature",
    "parse_callback",
    "sign",
    "verify_signature",
]
