"""Records, pictures and texts on the host: from prepared data to the batches of a step."""
