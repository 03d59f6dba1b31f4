"""The study: how methods behave when teacher and judge are wrong."""
