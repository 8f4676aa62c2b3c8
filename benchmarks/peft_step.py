"""One contender of side_by_side.py in a process of its own: a LoRA step with transformers + PEFT, bf16 weights of random values.

python benchmarks/peft_step.py MODEL SEQ_LEN KIND STEPS prints JSON: bytes above the import, seconds of each step, loss. KIND:

    kept           every activation kept
    checkpointed   gradient checkpointing of every layer
    every_2        of every second layer
    offload        of every layer, what is saved moved to the host (which on a CPU is where it was)
    planned        torch.compile with torch's own activation planner (activation_memory_budget)
    mezo           two forwards with perturbed adapters, no backward

The allocator is left as a user has it: giving every freed block back at once would make PEFT's memory 15% less, and its step 1.7 x
as long.
"""

import json
import sys
import time

import torch
import torch._functorch.config as functorch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from mebp import load_model
from mebp.executor.measure.memory import Sampler, memory_now

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STD = 0.02
LEARNING_RATE = 1e-4
EPSILON = 1e-3  # of MeZO's perturbation
PLANNED_BUDGET = 0.3  # of what keeping everything takes, for torch's planner
CHECKPOINTING = {"checkpointed": {}, "every_2": {"every_n_layers": 2}, "offload": {"offload": True}}


def make_model(name: str, kind: str) -> torch.nn.Module:
    """The catalogue's Qwen2.5 shape with random weights, LoRA r=8 on every linear, prepared for one kind of step."""
    shape = load_model(name)
    config = Qwen2Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        use_cache=False,
    )
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.normal_(std=STD)
    model.tie_weights()
    model.model.rotary_emb.__init__(config)  # its tables are no parameters: made anew
    peft = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=LINEARS, lora_dropout=0.0))
    if kind in CHECKPOINTING:
        peft.enable_input_require_grads()
        peft.base_model.model.activation_checkpointing_enable(**CHECKPOINTING[kind])
    if kind == "planned":
        functorch.activation_memory_budget = PLANNED_BUDGET
        return torch.compile(peft.train(), backend="aot_eager_decomp_partition", dynamic=False)
    return peft.train()


def backprop(model: torch.nn.Module, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> float:
    """One step by gradient."""
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


@torch.no_grad()
def mezo(model: torch.nn.Module, trained: list[torch.nn.Parameter], ids: torch.Tensor, seed: int) -> float:
    """One step by two forwards along a random direction, drawn again from its seed each time it is needed."""

    def move(scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in trained:
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=scale)

    move(EPSILON)
    above = float(model(input_ids=ids, labels=ids).loss)
    move(-2 * EPSILON)
    below = float(model(input_ids=ids, labels=ids).loss)
    move(EPSILON - LEARNING_RATE * (above - below) / (2 * EPSILON))
    return above


def main() -> None:
    """Run the steps and print what they took."""
    name, seq_len, kind, steps = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    torch.mm(torch.zeros(64, 64), torch.zeros(64, 64))
    baseline, _ = memory_now()
    with Sampler() as sampler:
        model = make_model(name, kind)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE)
        ids = torch.randint(0, load_model(name).vocab, (1, seq_len), generator=torch.Generator().manual_seed(0))
        seconds = []
        for step in range(steps + 1):
            begin = time.perf_counter()
            loss = mezo(model, trained, ids, step) if kind == "mezo" else backprop(model, optimizer, ids)
            seconds.append(time.perf_counter() - begin)
    print(json.dumps({"peak": sampler.anonymous - baseline, "process": sampler.anonymous, "seconds": seconds[1:], "loss": loss}))


if __name__ == "__main__":
    main()
