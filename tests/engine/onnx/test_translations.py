"""Operators in the exported graph: as many as were meant, and with the same values as in torch."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from geopeft.onnx import translations


class Attention(torch.nn.Module):
    """GELU of attention, with a mask or a scale of its own where it is asked to."""

    def __init__(self, mask: torch.Tensor | None = None, scale: float | None = None) -> None:
        super().__init__()
        self.scale, self.mask = scale, mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = torch.nn.functional.scaled_dot_product_attention(x, x + 1, 2 * x, attn_mask=self.mask, scale=self.scale)
        return torch.nn.functional.gelu(mixed)


@pytest.mark.parametrize("kind", ["many queries", "few", "may look", "bias", "own scale"])
def test_attention_and_gelu_are_written_as_the_runtime_computes_them_best(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translations, "MOST_SCORES", 7 * 3 * 50 if kind == "many queries" else 1 << 20)
    monkeypatch.setattr(translations, "FEWEST_QUERIES", 1)
    seen = torch.rand(1, 1, 50, 50, generator=torch.Generator().manual_seed(0)) > 0.5
    mask = {"may look": seen, "bias": seen.float()}.get(kind)
    network = Attention(mask, 0.7 if kind == "own scale" else None).eval()
    x = torch.randn(2, 3, 50, 8, generator=torch.Generator().manual_seed(0))
    program = torch.onnx.export(
        network, (x,), dynamo=True, opset_version=18, verbose=False, input_names=["x"],
        dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1, max=64)}},
        custom_translation_table=translations.translations(),
    )  # fmt: skip
    assert program is not None
    operators = [node.op_type for node in program.model_proto.graph.node]
    assert operators.count("Softmax") == (8 if kind == "many queries" else 1) and "Shape" not in operators
    body = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(body, providers=["CPUExecutionProvider"])
    for batch in (x, x[:1]):
        np.testing.assert_allclose(session.run(None, {"x": batch.numpy()})[0], network(batch), atol=1e-5)
