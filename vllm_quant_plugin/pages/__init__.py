"""HTML pages that stand alone: one style sheet, one script, and helpers that escape. No torch."""
