"""The peer of gateway.py: LitServe with a model that does nothing, as its documentation writes one.

    python litserve_trivial.py PORT

Runs in a virtual environment of its own. POST /predict {"inputs": …} answers {"output": label}.
"""

import sys

import litserve


class Trivial(litserve.LitAPI):
    """Answers every text with one label."""

    def setup(self, device) -> None:
        pass

    def decode_request(self, request):
        return request["inputs"]

    def predict(self, text):
        return "grain"

    def encode_response(self, output):
        return {"output": output}


if __name__ == "__main__":
    server = litserve.LitServer(Trivial(), accelerator="cpu", track_requests=False)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
