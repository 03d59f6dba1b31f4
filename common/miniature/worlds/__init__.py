"""The worlds of the miniature: texts, rules, exact oracles."""
