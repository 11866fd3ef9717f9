"""The bundled model: its procedural world, its parts, and its training."""
