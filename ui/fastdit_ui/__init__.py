"""The Gradio app: generate, compare, look inside, search, and a library of runs."""
