"""Search in pictures by text or picture: an index made once, then queries from the terminal or from a local page."""
