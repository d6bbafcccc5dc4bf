"""From files to batches: tars and other sources, pictures, captions, the order of them all."""
