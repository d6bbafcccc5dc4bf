"""Lists of queries: building one from corpora, titles and WordNet, reading and writing it."""
