"""Label sets of the bias tables, as data."""
