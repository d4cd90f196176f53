"""Tuning methods: what each adds to a model, and which parameters move."""
