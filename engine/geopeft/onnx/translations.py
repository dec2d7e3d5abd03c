"""Operators that torch's exporter writes in a way that ONNX Runtime computes slowly, written as it computes them best.

Everything stays within the standard's operators of 2022, so that other readers gain as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from onnxscript import ir, opset18

# Scores of queries and keys that are computed at once, for one image. 4 MB stay in a processor's cache, and those of
# four images nearly so; all of them together may need gigabytes: 11 520 tokens of eight heads have 4 GB. Below so many
# queries a product's time goes into bringing the keys into order.
MOST_SCORES = 1 << 20
FEWEST_QUERIES = 96


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export`: by torch's operator, what writes it."""
    return {
        torch.ops.aten.scaled_dot_product_attention.default: attention,
        torch.ops.aten.gelu.default: gelu,
    }


def gelu(x: Any, approximate: str = "none") -> Any:
    """GELU (arXiv 1606.08415), its factors in the order in which the runtime knows them as one operator."""
    if approximate == "tanh":
        cube = opset18.Mul(opset18.Mul(opset18.Mul(x, x), x), _number(0.044715))
        inner = opset18.Tanh(opset18.Mul(opset18.Add(x, cube), _number(math.sqrt(2 / math.pi))))
    else:
        inner = opset18.Erf(opset18.Div(x, _number(math.sqrt(2))))
    return opset18.Mul(opset18.Mul(x, opset18.Add(inner, _number(1.0))), _number(0.5))


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(query key^T * scale + mask) value, some queries at a time where there are many.

    Args:
        query, key, value: (..., heads, tokens, width); all but the first dimension are known.
        attn_mask: added to the scores, or True where a query may look; None: everywhere.
        dropout_p: of training, which an exported network has behind it.
        is_causal, enable_gqa: of language models; NotImplementedError.
    """
    if is_causal or enable_gqa:
        raise NotImplementedError("attention of language models")
    *_, heads, queries, width = query.shape
    rank = len(query.shape)
    turned = opset18.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    scaled = opset18.Mul(query, _number(width**-0.5 if scale is None else float(scale)))
    if attn_mask is not None and attn_mask.dtype == ir.DataType.BOOL:
        attn_mask = opset18.Where(attn_mask, _number(0.0), _number(-math.inf))
    rows = queries_at_once(heads, queries, key.shape[-2])
    if attn_mask is not None or rows >= queries:
        return _attend(scaled, turned, value, attn_mask)
    parts = [
        opset18.Slice(scaled, _numbers(start), _numbers(min(start + rows, queries)), _numbers(rank - 2))
        for start in range(0, queries, rows)
    ]
    return opset18.Concat(*(_attend(part, turned, value, None) for part in parts), axis=rank - 2)


def queries_at_once(heads: int, queries: int, keys: int) -> int:
    """Equal shares of the queries, so large that their scores are few enough."""
    most = max(FEWEST_QUERIES, MOST_SCORES // (heads * keys))
    return -(-queries // -(-queries // most))


def _attend(query: Any, turned_key: Any, value: Any, mask: Any) -> Any:
    scores = opset18.MatMul(query, turned_key)
    if mask is not None:
        scores = opset18.Add(scores, mask)
    return opset18.MatMul(opset18.Softmax(scores, axis=-1), value)


def _number(value: float) -> Any:
    return opset18.Constant(value_float=value)


def _numbers(*values: int) -> Any:
    return opset18.Constant(value_ints=values)
