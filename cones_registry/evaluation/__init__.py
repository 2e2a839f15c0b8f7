"""Evaluation: what methods are compared on, rivals, pictures, scores and tables of them."""
