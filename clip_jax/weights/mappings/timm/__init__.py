"""The names of timm's image towers, alone or as the `visual.trunk` of open_clip's models."""
