"""The released CLIPS format, an OpenCLIP state dict and its config, and our parameters: both ways."""
