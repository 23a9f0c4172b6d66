"""A plan as a table, HTML, sentences and JSON."""
