"""Adapters for Diffusers pipelines, and the bundled model. Loaded through the entry-point group `fastdit.pipelines`."""
