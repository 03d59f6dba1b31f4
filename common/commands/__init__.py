"""Steps of the notebooks as commands for a file of one's own: scores of a judge, an evaluation of what exists."""
