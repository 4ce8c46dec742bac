"""Retraining: the integer graph itself is trained, so that what is learnt is what runs."""
