"""The image tower, the text tower, the captioner, and CLIPS, which joins them."""
