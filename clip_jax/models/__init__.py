"""Towers and the models made of them; `architectures` names the architectures."""
