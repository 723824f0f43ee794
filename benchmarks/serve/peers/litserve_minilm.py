"""The peer of cloud.py: a checkpoint behind LitServe with its batching on, as its documentation writes one.

    python litserve_minilm.py CHECKPOINT --port N --threads N --workers N --max-batch N --wait-ms MS

Runs in a virtual environment of its own, with the torch and transformers of edgewise. POST /predict {"text": …} answers
{"output": label}.
"""

import argparse

import litserve
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class Classifier(litserve.LitAPI):
    """Tokenizes and computes a batch together, padded to its longest text."""

    def __init__(self, checkpoint: str, threads: int, **batching) -> None:
        super().__init__(**batching)
        self._checkpoint = checkpoint
        self._threads = threads

    def setup(self, device) -> None:
        torch.set_num_threads(self._threads)
        self._tokenizer = AutoTokenizer.from_pretrained(self._checkpoint)
        self._model = AutoModelForSequenceClassification.from_pretrained(self._checkpoint, dtype=torch.float32).eval()

    def decode_request(self, request):
        return request["text"]

    def predict(self, texts):
        encoded = self._tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
        with torch.inference_mode():
            return self._model(**encoded).logits.argmax(dim=1)

    def encode_response(self, output):
        return {"output": self._model.config.id2label[int(output)]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    for option in ("--port", "--threads", "--workers", "--max-batch"):
        parser.add_argument(option, type=int, required=True)
    parser.add_argument("--wait-ms", type=float, default=0.0)
    given = parser.parse_args()
    api = Classifier(
        given.checkpoint, given.threads, max_batch_size=given.max_batch, batch_timeout=given.wait_ms / 1000
    )
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=given.workers, track_requests=False)
    server.run(host="127.0.0.1", port=given.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
