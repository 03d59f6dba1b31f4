"""Chat models: endpoints, local models, kept replies."""
