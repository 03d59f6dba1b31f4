"""What notebooks and commands share: parameters, profiles, execution."""
