"""Shared by two or more packages; knows no model; imports third-party code only."""
