r"""What bfloat16 does to a short training: python -m data.study.bfloat16 --gguf FILE

FILE is SmolLM2-135M-Instruct, see make_pretrained.py. Its weights are rounded to bfloat16, as most
published models store them. It is then trained in float32 for 8 steps on 16 solutions of
data/train.jsonl, once in full and once with LoRA. bfloat16.json gets log pi of these solutions:
before, after training, after saving in float32 and loading, and after rounding to bfloat16.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import rift
from data.study.make_pretrained import unpack

OUT = Path(__file__).with_name("bfloat16.json")
STEPS, LORA_LR = 8, 1e-4


@torch.no_grad()
def mean_logp(model, samples: list[dict]) -> float:
    """log pi of a sample, averaged over the samples, computed in float32."""
    batch = rift.collate(samples, model.device)
    return rift.response_logps(model, batch, None).sum(1).mean().item()


def round_to_bfloat16(model) -> float:
    """Rounds the weights in place. Returns the share of them that this changes."""
    changed = total = 0
    for weight in model.parameters():
        rounded = weight.data.bfloat16().float()
        changed += (rounded != weight).sum().item()
        total += weight.numel()
        weight.data = rounded
    return changed / total


def share_unchanged(model, start: dict) -> float:
    weights = dict(model.named_parameters())
    same = sum((weights[name] == start[name]).sum().item() for name in weights)
    return same / sum(weight.numel() for weight in weights.values())


def reload(model):
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def train(gguf: Path, lora: bool, lr: float) -> dict[str, float]:
    model, tokenizer = unpack(gguf)
    round_to_bfloat16(model)
    start = {name: weight.clone() for name, weight in model.named_parameters()}
    samples = [
        rift.encode(
            model, tokenizer, {**p, "response": p["solution"], "reward": 1.0}, "{problem}\n"
        )
        for p in rift.read_problems("data/train.jsonl")[:16]
    ]
    found = {"lr": lr, "steps": STEPS, "before": mean_logp(model, samples)}
    if lora:
        torch.manual_seed(0)
        adapters = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, adapters)
    config = rift.Training(device="cpu", lr=lr, steps=STEPS, batch_size=16)
    rift.train(model, tokenizer, samples, config, rift.rft_loss)
    if lora:
        model = model.merge_and_unload()
    found["trained, in memory"] = mean_logp(model, samples)
    loaded = reload(model)
    found["saved in float32 and loaded"] = mean_logp(loaded, samples)
    round_to_bfloat16(loaded)
    found["rounded to bfloat16"] = mean_logp(loaded, samples)
    found["weights as before training, %"] = 100 * share_unchanged(loaded, start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True)
    args = parser.parse_args()
    found = {"in full": train(args.gguf, False, 1e-5), "LoRA": train(args.gguf, True, LORA_LR)}
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
