"""Files on their way to the browser: copies in Gradio's cache alone are served, never the output folder itself."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder


def served_copy(path: Path) -> str:
    """A copy that the server may hand out; for components such as `gr.Video` and `gr.File`."""
    return str(save_file_to_cache(path, cache_dir=get_upload_folder()))


def served_address(path: Path) -> str:
    """The address of such a copy, relative to the page; for HTML."""
    return f"gradio_api/file={quote(served_copy(path))}"
