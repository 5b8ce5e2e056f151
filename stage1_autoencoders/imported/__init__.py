"""Tokenizers of other projects as members of the family; they are used as they are."""
