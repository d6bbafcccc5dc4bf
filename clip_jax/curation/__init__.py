"""Choosing training pairs: query lists, matching, balance and rules."""
