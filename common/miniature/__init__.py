"""The embedded laboratory: small worlds with an exact oracle, and a language model pre-trained on them from scratch."""
