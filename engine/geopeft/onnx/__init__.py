"""Models as ONNX files, ours and those of others."""
