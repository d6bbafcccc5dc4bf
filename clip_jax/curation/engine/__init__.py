"""The Beam pipeline, its workers, and what it writes."""
