"""The page of `app.py`: a tab for everything that a pipeline can do."""
