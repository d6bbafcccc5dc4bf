"""From files to batches: sources, images, captions, filters, and the order of training."""
