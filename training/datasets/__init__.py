"""Datasets before training: what is in one (survey), and how one is made from a folder (building). Pure."""
