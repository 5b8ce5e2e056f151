"""Captions, as a prior reads them: its own tokenizer, or a frozen text encoder."""
