"""Train students: one method, all rows of a table, equal tuning."""
