"""One contender of side_by_side.py in a process of its own: a LoRA step with transformers + PEFT, bf16 weights of random values.

python benchmarks/peft_step.py MODEL SEQ_LEN {kept,checkpointed} STEPS prints JSON: bytes above the import, seconds of each step,
loss.
"""

import json
import sys
import time

from mebp.executor.measure import Sampler, fix_allocator, memory_now

fix_allocator()

import torch  # noqa: E402  (after the allocator is set)
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: E402

from mebp import load_model  # noqa: E402

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STD = 0.02
LEARNING_RATE = 1e-4


def make_model(name: str, *, checkpointed: bool) -> torch.nn.Module:
    """The catalogue's Qwen2.5 shape with random weights, LoRA r=8 on every linear."""
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
    if checkpointed:
        peft.enable_input_require_grads()
        peft.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return peft.train()


def main() -> None:
    """Run the steps and print what they took."""
    name, seq_len, kind, steps = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    torch.mm(torch.zeros(64, 64), torch.zeros(64, 64))
    baseline, _ = memory_now()
    with Sampler() as sampler:
        model = make_model(name, checkpointed=kind == "checkpointed")
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE)
        ids = torch.randint(0, load_model(name).vocab, (1, seq_len), generator=torch.Generator().manual_seed(0))
        seconds = []
        for _ in range(steps + 1):
            begin = time.perf_counter()
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - begin)
    print(
        json.dumps(
            {"peak": sampler.anonymous - baseline, "process": sampler.anonymous, "seconds": seconds[1:], "loss": float(loss)}
        )
    )


if __name__ == "__main__":
    main()
