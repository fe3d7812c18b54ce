"""What fits on a GPU with 24 or 80 GB, computed for the published sizes of Qwen2.5.

Training in full keeps 16 bytes a parameter: float32 weights, gradients and AdamW's two moments.
LoRA keeps 2 bytes a parameter for the frozen bfloat16 weights, and 16 for those of its adapters
(rank 16, all linear layers). For each token of a forward pass a layer keeps 34 D + 8 I bytes until
the backward pass, where D is its hidden and I its inner size (counted with saved_tensors_hooks,
under autocast to bfloat16). A GB is 2^30 bytes, and a tenth of the GPU is left free.
"""

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

import rift

GB = 2**30
RANK = 16
SIZES = {  # hidden, inner, layers, heads, key-value heads, vocabulary, tied embeddings
    "0.5B": (896, 4864, 24, 14, 2, 151_936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151_936, True),
    "7B": (3584, 18944, 28, 28, 4, 152_064, False),
}
HEADER = [
    "Qwen2.5",
    "what stays in memory",
    "`--micro-batch-tokens` at most, 24 GB",
    "80 GB",
    "`--parallel` at most at 1,000 tokens, 24 GB",
    "80 GB",
]


def count_parameters(size: tuple) -> int:
    hidden, inner, layers, heads, kv_heads, vocabulary, tied = size
    config = Qwen2Config(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


def rows() -> list[list[str]]:
    found = []
    for name, size in SIZES.items():
        hidden, inner, layers, heads, kv_heads, vocabulary, _ = size
        parameters, kv = count_parameters(size), hidden // heads * kv_heads
        linear = layers * (2 * hidden * (hidden + kv) + 3 * hidden * inner)
        adapters = RANK * layers * (4 * hidden + 2 * (hidden + kv) + 3 * (hidden + inner))
        # A float32 copy of the output layer, and two chunks of logits with their gradients.
        head = 4 * vocabulary * hidden + 8 * 4 * rift.LOGITS_AT_ONCE
        cache = 2 * layers * kv * 2 * 1000  # of 1,000 tokens in bfloat16
        parallel = [f"{(0.9 * card * GB - 2 * parameters) / cache:,.0f}" for card in (24, 80)]
        # Autocast keeps bfloat16 copies of the linear layers while it trains float32 weights.
        kinds = {"full": (16 * parameters, 2 * linear), "LoRA": (2 * parameters + 16 * adapters, 0)}
        for kind, (state, copies) in kinds.items():
            line = [f"{name}, {kind}", f"{state / GB:.1f} GB"]
            for card in (24, 80):
                room = 0.9 * card * GB - state - copies - head
                tokens = room / (layers * (34 * hidden + 8 * inner))
                line.append(f"{tokens:,.0f}" if tokens > 1000 else "does not fit")
            found.append([*line, *parallel])
    return found
