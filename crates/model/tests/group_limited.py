"""Makes group_limited.json: what transformers computes with routing limited to groups, for the base model and the
inputs of the golden vectors. Run with the Python of scripts/setup-bench.sh:

    .venv-bench/bin/python crates/model/tests/group_limited.py
"""

import json
import pathlib

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

root = pathlib.Path(__file__).resolve().parents[3]
vectors = root / "tests/vectors/model"
inputs = load_file(vectors / "full.safetensors")
torch.set_num_threads(1)
cases = []
for groups, chosen, top_k in [(4, 1, 2), (4, 2, 2), (4, 3, 2), (2, 1, 3), (8, 2, 2), (8, 5, 4)]:
    config = AutoConfig.from_pretrained(vectors / "base")
    config.topk_method, config.n_group, config.topk_group = "group_limited_greedy", groups, chosen
    config.num_experts_per_tok = top_k
    model = AutoModelForCausalLM.from_pretrained(
        vectors / "base", config=config, dtype=torch.float32, experts_implementation="eager"
    ).eval()
    for layer in model.model.layers:
        if hasattr(layer.mlp, "gate"):
            # 5.4.0 reads it and does not set it.
            layer.mlp.num_experts = config.n_routed_experts
    with torch.no_grad():
        out = model(inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=inputs["labels"])
    cases.append({
        "n_group": groups,
        "topk_group": chosen,
        "num_experts_per_tok": top_k,
        "loss": out.loss.item(),
        # Of the first row's tokens, the first 8 ids.
        "logits": out.logits[0, :, :8].flatten().tolist(),
    })
result = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0], "cases": cases}
pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
