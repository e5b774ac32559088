"""The surface of Text Generation Inference: generate, generate_stream and info."""
