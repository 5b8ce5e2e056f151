"""Scores as files: tables, charts and one HTML page."""
