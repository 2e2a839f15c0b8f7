"""Evaluation: how well pictures show what was asked, and what other methods come to."""
