"""ONNX models in memory: nodes, tensors, the operator's nodes, metadata, publication."""
