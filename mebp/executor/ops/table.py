"""Kind name -> the function that runs it."""

from collections.abc import Callable

from mebp.executor.env import Io
from mebp.executor.ops.attention import attention, attention_backward
from mebp.executor.ops.elementwise import embed, glu, glu_backward, residual, rope, rope_backward
from mebp.executor.ops.head import head
from mebp.executor.ops.linear import linear, linear_backward
from mebp.executor.ops.norm import norm, norm_backward
from mebp.executor.ops.update import accumulate, apply, mezo_update, perturb, update

OPS: dict[str, Callable[[Io], None]] = {
    "embed": embed,
    "norm": norm,
    "linear": linear,
    "rope": rope,
    "attention": attention,
    "residual": residual,
    "glu": glu,
    "head": head,
    "norm_backward": norm_backward,
    "linear_backward": linear_backward,
    "rope_backward": rope_backward,
    "attention_backward": attention_backward,
    "glu_backward": glu_backward,
    "update": update,
    "accumulate": accumulate,
    "apply": apply,
    "perturb": perturb,
    "mezo_update": mezo_update,
}
