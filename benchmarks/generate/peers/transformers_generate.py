"""transformers' own generate, one prompt after the other: python transformers_generate.py CHECKPOINT THREADS TOKENS.

Reads a JSON list of questions from standard input; writes JSON with when each token came, and the texts.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

folder, threads, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)


class Times(BaseStreamer):
    """Notes when each token comes; what comes first is the prompt."""

    def __init__(self) -> None:
        self.seen = []

    def put(self, value):
        self.seen.append(time.perf_counter())

    def end(self):
        pass


def answered(question, count):
    """One answer, greedily."""
    started, times = time.perf_counter(), Times()
    asked = [{"role": "user", "content": question}]
    given = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        ids = model.generate(**given, max_new_tokens=count, do_sample=False, streamer=times)[0]
    text = tokenizer.decode(ids[given["input_ids"].shape[1] :], skip_special_tokens=True)
    return {"text": text, "times_s": [at - started for at in times.seen[1:]], "seconds": time.perf_counter() - started}


questions = json.load(sys.stdin)
answered(questions[0], 4)
print(json.dumps([answered(question, tokens) for question in questions]))
