"""The embedding: only the rows of the tokens that occur are read. N tokens, d width."""

from mebp.executor.env import Io
from mebp.models.kind.embed import EmbedParams


def embed(io: Io) -> None:
    """Decompress only the rows of the tokens that occur, and scale them."""
    y = io["y"]  # (N, d)
    io.gather(io.env.ids, y)
    scale = io.params(EmbedParams).scale
    if scale != 1.0:
        y.mul_(scale)
