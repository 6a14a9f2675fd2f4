"""Running files in onnxruntime: sessions, and images tile by tile."""
