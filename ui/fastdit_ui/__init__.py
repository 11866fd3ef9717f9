"""The Gradio app. Not built yet: this version ships the package name alone."""
