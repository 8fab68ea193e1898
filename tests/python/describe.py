"""Prints the tensors of checkpoints as a list of {name: {dtype, shape, bytes}}, read the way miners read them."""

import ctypes
import json
import sys
import zipfile

import torch


def describe(tensor):
    tensor = tensor.contiguous()
    size = tensor.numel() * tensor.element_size()
    data = ctypes.string_at(tensor.data_ptr(), size) if size else b""
    return {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "bytes": data.hex()}


def read(path):
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        bad = zipfile.ZipFile(path).testzip()
        assert bad is None, f"the checksum of {bad} is wrong"
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        assert list(loaded) == ["model_state_dict"], list(loaded)
        state = loaded["model_state_dict"]
        mapped = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["model_state_dict"]
        assert all(describe(mapped[name]) == describe(tensor) for name, tensor in state.items())
    return {name: describe(state[name]) for name in sorted(state)}


if __name__ == "__main__":
    json.dump([read(path) for path in sys.argv[1:]], sys.stdout)
