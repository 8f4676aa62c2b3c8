"""The catalogue against published counts, and against modules that transformers builds from its entries."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from mebp.errors import ModelError
from mebp.models.build import build_graph, num_trainable
from mebp.models.catalogue import ALIASES, CATALOGUE, catalogue_model, load_model
from mebp.models.format import weight_formats
from mebp.models.op import Part
from mebp.models.workload import Lora, Workload

PUBLISHED = {  # parameters, as the checkpoints' own safetensors headers count them
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
    "mistral-7b": 7_248_023_552,
    "ministral-3-3b": 3_429_006_336,
    "gemma-2b": 2_506_172_416,
    "gemma-2-2b": 2_614_341_888,
    "phi-3-mini": 3_821_079_552,
    "phi-4-mini": 3_836_021_760,
    "granite-3.3-2b": 2_533_539_840,
    "minicpm-2b": 2_724_880_896,
    "olmo-2-1b": 1_484_916_736,
    "olmo-3-7b": 7_298_011_136,
    "exaone-4-1.2b": 1_279_391_488,
}
PAPER_TRAINABLE = {"0.5b": 4.39e6, "1.5b": 9.23e6, "3b": 14.97e6, "1b": 6.52e6, "4b": 14.90e6}


def workload(seq_len: int = 256) -> Workload:
    return Workload(seq_len=seq_len, lora=Lora(), weights=weight_formats("int4-g64"))


@pytest.mark.parametrize("name", CATALOGUE)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    assert catalogue_model(name).num_parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", [name for name in CATALOGUE if "minicpm" not in name])  # which transformers does not have
def test_transformers_builds_as_many_parameters_from_the_same_config(name: str) -> None:
    fields = dict(CATALOGUE[name])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in set(model.parameters())) == catalogue_model(name).num_parameters


@pytest.mark.parametrize("alias", ALIASES)
def test_trainable_parameters_are_those_of_the_paper(alias: str) -> None:
    """Rank 8 on all seven linears; the paper gives three figures."""
    assert num_trainable(load_model(alias), workload()) == pytest.approx(PAPER_TRAINABLE[alias], rel=0.003)


@pytest.mark.parametrize(
    "name", ["qwen2.5-0.5b", "qwen3-0.6b", "gemma-3-1b", "llama-3.2-1b", "smollm2-135m", "phi-4-mini", "olmo-2-1b"]
)
def test_forward_flops_agree_with_torch_counter_on_real_modules(name: str) -> None:
    """Products of the frozen weights; attention is left to its formula (torch counts none on CPU)."""
    fields = dict(CATALOGUE[name])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        ids = torch.zeros(1, 64, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids)
    counted = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if "bmm" not in str(op))
    graph = build_graph(catalogue_model(name), workload(64))
    lora = sum(2 * op.dims.rows * op.dims.rank * (op.dims.cols + op.dims.outs) for op in graph.ops if op.kind.name == "linear")
    ours = sum(op.kind.flops(op) for op in graph.ops if op.kind.name == "linear") - lora
    head = graph.head
    ours += head.kind.flops(head) // 2  # logits only, not dx
    assert ours == counted


def test_attention_flops_follow_the_formula() -> None:
    """Two products of (query, key) pairs x head_dim forward, five backward; half of T x T pairs and the diagonal."""
    graph = build_graph(catalogue_model("qwen2.5-0.5b"), workload(256))
    flops = {op.kind.name: op.kind.flops(op) for op in graph.ops if op.kind.part is Part.ATTENTION}
    pairs = 256 * 257 // 2
    assert flops == {"attention": 2 * 2 * 14 * pairs * 64, "attention_backward": 5 * 2 * 14 * pairs * 64}


def test_unknown_name_suggests_a_known_one() -> None:
    with pytest.raises(ModelError, match="did you mean qwen3-4b"):
        load_model("qwen3-4bb")


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("google/gemma-3-4b-it", "gemma-3-4b"),
        ("google/gemma-3-1b-pt", "gemma-3-1b"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b"),
        ("Qwen/Qwen3-4B", "qwen3-4b"),
        ("meta-llama/Llama-3.2-1B-Instruct", "llama-3.2-1b"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"),
        ("unsloth/gemma-3-4b-it-bnb-4bit", "gemma-3-4b"),
    ],
)
def test_hugging_face_ids_of_known_models_are_understood(spec: str, name: str) -> None:
    assert load_model(spec) == catalogue_model(name)


@pytest.mark.parametrize("spec", ["google/gemma-2-9b", "/gemma-3-4b", "Qwen/Qwen2.5-14B", "a/b/gemma-3-4b-it"])
def test_ids_of_other_models_are_refused_in_a_line(spec: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(spec)
    assert len(str(caught.value).splitlines()) == 1
    assert spec in str(caught.value)
