"""The same model in Python, for forward.rs: loads it, then runs the batches once per line of input.

usage: peer.py FOLDER BATCHES.json THREADS DTYPE EXPERTS

BATCHES.json is a list of batches, each a list of rows of token ids. Every answer is one line of JSON:
{"seconds": [by the clock, of the processor], "losses", "peak_bytes"}; the first one, after loading, has no losses.
"""

import json
import resource
import sys
import time

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

folder, batches, threads, dtype, experts = sys.argv[1:]
logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(int(threads))


def now():
    return time.perf_counter(), time.process_time()


def since(began):
    return [end - start for start, end in zip(began, now())]


began = now()
model = AutoModelForCausalLM.from_pretrained(
    folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", experts_implementation=experts
).eval()
with open(batches) as file:
    batches = [torch.tensor(rows) for rows in json.load(file)]


def answer(seconds, losses):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "losses": losses, "peak_bytes": peak}), flush=True)


answer(since(began), [])
with torch.inference_mode():
    for _ in sys.stdin:
        began = now()
        losses = [model(input_ids=ids, labels=ids, use_cache=False).loss.item() for ids in batches]
        answer(since(began), losses)
