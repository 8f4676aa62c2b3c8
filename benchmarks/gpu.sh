#!/bin/sh
# Checks this project on a CUDA device, then times it, for 8 minutes at most; --dry-run: small shapes on the processor.
# Needs torch for CUDA, and this project installed with its `dev` extra: sh benchmarks/gpu.sh [--dry-run]
set -eu
cd "$(dirname "$0")/.."
if [ "${1:-}" = --dry-run ]; then
    TRITON_INTERPRET=1 python -m pytest -q -p no:cacheprovider tests/kernel/test_triton_unpack.py || [ $? = 5 ] # 5: no Triton here
else
    python -c "import torch; print(torch.__version__, torch.cuda.get_device_name())"
    python -m pytest -q -p no:cacheprovider tests/kernel/test_triton_unpack.py
fi
exec timeout 480 python benchmarks/gpu.py "$@"
