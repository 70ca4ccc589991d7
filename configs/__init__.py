"""YAML overrides of the typed defaults: one file per model."""
