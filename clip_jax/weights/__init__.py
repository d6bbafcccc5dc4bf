"""Weights in the files of OpenAI, open_clip and Hugging Face, under the names they have here."""
