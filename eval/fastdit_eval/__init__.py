"""Evaluation: how close sparse is to dense, and what it gained."""
