"""Other wordings of prompts by Dynamic Blocking (arXiv 2010.12885), with a check that they ask for the same."""
