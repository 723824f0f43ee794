"""The peer of gateway.py: KServe's Python server with a model that does nothing, as its documentation writes one.

    python kserve_trivial.py PORT

Runs in a virtual environment of its own. POST /v1/models/trivial:predict {"instances": [text]} answers
{"predictions": [label]}.
"""

import sys

import kserve


class Trivial(kserve.Model):
    """Answers every text with one label."""

    def __init__(self) -> None:
        super().__init__("trivial")
        self.ready = True

    async def predict(self, payload, headers=None, response_headers=None):
        return {"predictions": ["grain" for _ in payload["instances"]]}


if __name__ == "__main__":
    server = kserve.ModelServer(
        http_port=int(sys.argv[1]), enable_grpc=False, access_log_format=None, enable_latency_logging=False
    )
    server.start([Trivial()])
