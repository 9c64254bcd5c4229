"""The engine over HTTP, in OpenAI's protocol.

    client -> connection -> gate -> app -> orders -> worker (a thread) -> engine
           <-               answers <- choices <- pieces <- events

Needs the extra "serve" (fastapi, uvicorn, prometheus_client). Left out: TLS (a proxy's work), tools, pictures, stored answers.
"""
