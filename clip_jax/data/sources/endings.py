"""How the names of data files end, and what that says about them."""

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
CAPTIONS = (".json", ".txt", ".token")  # of common data sets, see `caption_tables`
RECORDS = (".array_record", ".arrayrecord")
SAVED = "state.json"  # in a folder that Hugging Face's `datasets` wrote
