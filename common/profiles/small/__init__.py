"""The profile `small`: real pairs and models of 135M parameters."""
