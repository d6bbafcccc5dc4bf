"""Curation: which pairs of a pool are worth training on, by the rules of the papers.

The pipeline of `python -m clip_jax curate` reads a pool once and writes facts about its pairs.
Rules over these facts decide which pairs are kept. The result is a selection that training reads.
"""
