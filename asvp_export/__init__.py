"""Export image-restoration teachers to ONNX with an ASVP defence inside, and verify the file."""
