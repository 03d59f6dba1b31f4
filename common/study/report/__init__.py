"""Tables and figures of the study."""
