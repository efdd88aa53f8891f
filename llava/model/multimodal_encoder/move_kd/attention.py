"""Attention of the class token, computed for one block alone.

Distillation weighs patches by how much the class token looks at them. Asking an encoder for its attention maps would
switch every layer to eager attention; one row of one layer costs two small matrix products.
"""

import torch
from torch import Tensor
from transformers.models.clip.modeling_clip import CLIPEncoderLayer


def cls_attention_row(block: CLIPEncoderLayer, hidden: Tensor) -> Tensor:
    """Attention from the class token to the patches in one block, averaged over heads.

    hidden: (T, 1 + N, D), the block's input. Returns (T, N) float32; a row sums to less than 1, because the class
    token also attends to itself.
    """
    attention = block.self_attn
    normed = block.layer_norm1(hidden)
    tiles, tokens, _ = normed.shape
    query = attention.q_proj(normed[:, :1]).view(tiles, 1, attention.num_heads, attention.head_dim)
    key = attention.k_proj(normed).view(tiles, tokens, attention.num_heads, attention.head_dim)
    scores = torch.einsum("tqhd,tkhd->thqk", query.float() * attention.scale, key.float())
    return scores.softmax(dim=-1)[:, :, 0, 1:].mean(dim=1)
