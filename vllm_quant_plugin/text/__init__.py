"""Texts as documents and as token windows, for calibration and evaluation."""
