"""May an adapter be shipped? Base and adapter answer the same prompts and are compared prompt by prompt."""
