"""Asking a judge about items and what its answers are worth: ask, evaluate, label, swap, direct, speed."""
