"""Where the patches of an image stand: 2-D rotary tables, and the learned position table on another grid."""

import torch
from torch.nn import functional as F

from .configuration_jina_clip import JinaCLIPVisionConfig

ROPE_THETA = 10000.0


def rope_tables(
    config: JinaCLIPVisionConfig, grid: tuple[int, int], device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the 2-D rotary positions, each (rows * columns, head_width), float32.

    The first half of the head dimension turns with the row, the second with the column; neighbouring pairs share an
    angle. With ``intp_freq`` any grid is squeezed onto ``pt_hw_seq_len`` positions; without it positions are counted
    in patches. Computed at every call: transformers leaves non-persistent buffers uninitialised when it loads.

    Example::

        >>> config = JinaCLIPVisionConfig(width=8, embed_dim=8, head_width=8, image_size=32, patch_size=8)
        >>> cos, sin = rope_tables(config, (2, 3))
        >>> cos.shape, sin[1].tolist()[:4]      # row 0, column 1: the row half does not turn
        (torch.Size([6, 8]), [0.0, 0.0, 0.0, 0.0])
    """
    half = config.head_width // 2
    frequencies = ROPE_THETA ** -(torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)

    def angles(count: int) -> torch.Tensor:
        positions = torch.arange(count, dtype=torch.float32, device=device)
        if config.intp_freq:
            positions = positions / count * config.pt_hw_seq_len
        return torch.outer(positions, frequencies).repeat_interleave(2, dim=-1)  # (count, half)

    rows, columns = grid
    by_row = angles(rows)[:, None, :].expand(rows, columns, half)
    by_column = angles(columns)[None, :, :].expand(rows, columns, half)
    table = torch.cat([by_row, by_column], dim=-1).reshape(rows * columns, 2 * half)
    return table.cos(), table.sin()


def apply_rope(states: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """Turn every token of (batch, heads, tokens, head_width) by its row of the tables.

    A pair (x0, x1) becomes (x0 cos - x1 sin, x1 cos + x0 sin): each element times cos plus its neighbour times a sine
    whose sign alternates (``signed_sin``), which takes one copy instead of three.
    """
    swapped = states.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    if torch.is_grad_enabled():
        return torch.addcmul(states * cos, swapped, signed_sin)
    return (states * cos).addcmul_(swapped, signed_sin)


def rope_with_cls(tables: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables of the patches (..., patches, head_width) to those of all tokens for ``apply_rope``.

    The class token gets an angle of zero in front; every first sine of a pair changes its sign.
    """
    cos, sin = tables
    signs = torch.tensor([-1.0, 1.0], device=sin.device).repeat(sin.shape[-1] // 2)
    cos = F.pad(cos, (0, 0, 1, 0), value=1.0)
    return cos.to(dtype), F.pad(sin * signs, (0, 0, 1, 0)).to(dtype)


def resize_position_embedding(table: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Fit a learned (1, 1 + n * n, width) position table to another grid by bicubic interpolation.

    The class token's row is kept. A grid equal to the table's own returns it untouched.
    """
    side = round((table.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return table
    patches = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    patches = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
    patches = patches.permute(0, 2, 3, 1).reshape(1, grid[0] * grid[1], -1).to(table.dtype)
    return torch.cat([table[:, :1], patches], dim=1)
