"""Where a base model keeps its decoder's linears, in each tool that adapters are written for."""

from dataclasses import dataclass

from mebp.models.config import Family, ModelConfig
from mebp.store.checkpoint import checkpoint_locations
from mebp.store.location import Location

ARCHITECTURES = {  # llama.cpp's, where they are not the family's name
    Family.MISTRAL: "llama",
    Family.MINISTRAL3: "mistral3",
    Family.GEMMA3: "gemma3",
    Family.OLMO3: "olmo2",
}
VISION_ARCHITECTURES = {"qwen2_5_vl": "qwen2vl", "qwen3_vl": "qwen3vl"}  # by the type of the whole model


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A model that adapters are for: its `name` or path, the type of the vision model whose decoder it is (`wrapper`, None where it
    is a decoder by itself), and a GGUF file's `architecture`, where it is one.
    """

    config: ModelConfig
    name: str
    wrapper: str | None = None
    architecture: str | None = None

    def peft_locations(self) -> dict[str, Location]:
        """Modules as transformers 5 names them."""
        return checkpoint_locations(self.config, "model.language_model." if self.wrapper else "model.")

    def mlx_locations(self) -> dict[str, Location]:
        """Modules as mlx-lm names them."""
        return checkpoint_locations(self.config, "language_model.model." if self.wrapper else "model.")

    @property
    def llama_cpp_architecture(self) -> str:
        """What llama.cpp calls the architecture."""
        family = ARCHITECTURES.get(self.config.family, str(self.config.family))
        return self.architecture or VISION_ARCHITECTURES.get(self.wrapper or "", family)
