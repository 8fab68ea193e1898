"""Saves a checkpoint with all the ways a tensor can lie in memory, and prints its tensors as describe.py does."""

import json
import sys

import torch
from describe import describe


def main(path):
    torch.manual_seed(1)
    storage = torch.randn(6, 8)
    state = torch.nn.Linear(3, 2).state_dict()  # An OrderedDict with _metadata.
    state["plain"] = torch.randn(3, 4)
    state["transposed"] = torch.randn(3, 4).t()
    state["strided"] = torch.randn(4, 6)[::2, 1::3]
    state["permuted"] = torch.randn(2, 3, 4).permute(2, 0, 1)
    state["head"] = storage[:3]
    state["tail"] = storage[3:]
    state["tied"] = state["plain"]
    state["parameter"] = torch.nn.Parameter(torch.randn(5))
    state["scalar"] = torch.tensor(3.5)
    state["empty"] = torch.zeros(0, 2)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool):
        state[str(dtype)] = torch.tensor([[1.0, 0.0, 1.0]]).to(dtype)
    torch.save({"model_state_dict": state, "step": 70000, "lr": 0.5, "done": False, "note": None}, path)
    json.dump({name: describe(state[name].detach()) for name in sorted(state)}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
