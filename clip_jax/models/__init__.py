"""Towers and the models made of them; `zoo` names the architectures."""
