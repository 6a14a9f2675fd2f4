"""From a teacher to a protected ONNX file: insertion, export, metadata, publication."""
