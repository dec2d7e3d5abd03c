"""ONNX files from strangers: read only where they hold nothing but plain calculations on the data inside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import onnx
from onnx import TensorProto

from geopeft.errors import PackageError

MOST_BYTES = 2 << 30
# Values of one chip at any place in the graph.
MOST_VALUES = 1 << 31
STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml"})
# They may run for ever.
_LOOPS = frozenset({"Loop", "Scan", "SequenceMap"})
# Shapes are computed from small tensors; the others need not be copied to know what a graph makes of them.
_SHAPE_BYTES = 4096


def read_graph(path: Path) -> onnx.ModelProto:
    """The model of an ONNX file; PackageError unless it is whole and harmless.

    Only standard operators without loops, functions of its own or data in other files; no tensor claims more than the
    file holds.
    """
    try:
        if path.is_dir():
            raise PackageError(f"{path} is a folder, not an ONNX file.", "Choose an .onnx file.")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise _too_large(path, f"it has {size / 1e6:.0f} MB")
        proto = onnx.load_model_from_string(path.read_bytes())
    except FileNotFoundError as error:
        raise PackageError(f"There is no ONNX file {path}.", "Check its path.", "PACKAGE_MISSING") from error
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error.strerror}.", "Check the file and its folder.") from error
    except PackageError:
        raise
    except Exception as error:  # protobuf's errors
        raise broken(path, "it is no ONNX model, or only a part of one") from error
    proto.DiscardUnknownFields()
    if not proto.graph.node or not proto.opset_import:
        raise broken(path, "it holds no model")
    _check_operators(path, proto)
    _check_tensors(path, proto, size)
    return proto


def check_sizes(path: Path, proto: onnx.ModelProto, side_px: int) -> None:
    """Checks that one chip of this side needs no absurd amount of memory anywhere in the graph.

    PackageError where it does. What the sizes depend on may not be known before the model runs; that is let pass.
    """
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(proto)
    for tensor in _tensors(skeleton.graph):
        if len(tensor.raw_data) > _SHAPE_BYTES:
            tensor.ClearField("raw_data")
    shape = skeleton.graph.input[0].type.tensor_type.shape
    for dim, value in zip(shape.dim, (1, None, side_px, side_px), strict=False):
        if value is not None:
            dim.dim_value = value
    inferred = skeleton
    with suppress(Exception):  # the library raises several kinds of its own; the runtime will judge
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if math.prod(dim for dim in dims if dim > 0) > MOST_VALUES:
            raise _too_large(path, f"it makes {dims} values of one chip")


def _check_operators(path: Path, proto: onnx.ModelProto) -> None:
    if proto.functions or proto.training_info:
        raise unsafe(path, "it brings functions of its own")
    foreign = {entry.domain for entry in proto.opset_import} - STANDARD
    for node in _nodes(proto.graph):
        if node.domain not in STANDARD:
            raise unsafe(path, f"its operator {node.op_type[:40]!r} belongs to {node.domain[:40]!r}, not to ONNX")
        if node.op_type in _LOOPS:
            raise unsafe(path, f"its operator {node.op_type} may run without an end")
        if not onnx.defs.has(node.op_type, "" if node.domain == "ai.onnx" else node.domain):
            raise unsafe(path, f"ONNX knows no operator {node.op_type[:40]!r}")
    # A domain that is named but not used asks the runtime for nothing.
    kept = [entry for entry in proto.opset_import if entry.domain not in foreign]
    if foreign:
        del proto.opset_import[:]
        proto.opset_import.extend(kept)


def _check_tensors(path: Path, proto: onnx.ModelProto, file_bytes: int) -> None:
    for tensor in _tensors(proto.graph):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise unsafe(path, "its data are in another file")
        # The smallest values take four bits.
        if any(dim < 0 for dim in tensor.dims) or math.prod(tensor.dims) > 2 * file_bytes:
            raise broken(path, f"its constant {tensor.name[:40]!r} claims more values than the file holds")
    for graph in _graphs(proto.graph):
        if graph.sparse_initializer:
            raise unsafe(path, "it holds sparse data")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all those inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for inner in _graphs(graph):
        yield from inner.node


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for inner in _graphs(graph):
        yield from inner.initializer
        for node in inner.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                yield from _sparse(attribute)


def _sparse(attribute: onnx.AttributeProto) -> Iterable[onnx.TensorProto]:
    for sparse in (
        *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
        *attribute.sparse_tensors,
    ):
        yield from (sparse.values, sparse.indices)


_AGAIN = "Copy it again from where it came, or export it again."
_DISTRUST = "Do not use this file; ask where it came from."


def broken(path: Path, reason: str) -> PackageError:
    """The file is damaged, or is none that can be used."""
    return PackageError(f"{path} cannot be used: {reason}.", _AGAIN, "ONNX_BROKEN")


def unsafe(path: Path, reason: str) -> PackageError:
    """The file asks for more than a model needs."""
    return PackageError(f"{path} is not a safe ONNX file: {reason}.", _DISTRUST, "ONNX_UNSAFE")


def _too_large(path: Path, reason: str) -> PackageError:
    return PackageError(f"{path} is larger than it may be: {reason}.", _DISTRUST, "ONNX_TOO_LARGE")
