"""Code that is copied into exported folders; only the ONNX export imports it here."""
