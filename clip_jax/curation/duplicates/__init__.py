"""Near-duplicates by a hash of images, and by features."""
