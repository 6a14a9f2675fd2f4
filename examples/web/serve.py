"""Serve the demo page with a protected ONNX file: python examples/web/serve.py protected.onnx [--port 8000].

The page itself is plain files: any web server will do that has them, the ONNX file as model.onnx, and
node_modules/onnxruntime-web. The two headers below let onnxruntime-web use threads; without them it runs on one.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

HERE = Path(__file__).resolve().parent


class Page(SimpleHTTPRequestHandler):
    """The files of this folder, and those given by name."""

    extensions_map: ClassVar = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def __init__(self, *args, files: dict[str, Path], **kwargs) -> None:
        self.files = files
        super().__init__(*args, directory=str(HERE), **kwargs)

    def translate_path(self, path: str) -> str:
        found = self.files.get(path.partition("?")[0])
        return str(found) if found else super().translate_path(path)

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        if model := self.files.get(self.path):
            self.send_header("X-Model-Name", quote(model.name))
            self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the page says what happens."""


def server(files: dict[str, Path], host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """A server of the page and of the files, by path ("/model.onnx"); port 0: a free one."""
    return ThreadingHTTPServer((host, port), partial(Page, files=files))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", type=Path)
    arguments.add_argument("--host", default="127.0.0.1")
    arguments.add_argument("--port", type=int, default=8000)
    chosen = arguments.parse_args()
    if not chosen.model.is_file():
        sys.exit(f"The model {chosen.model} does not exist.")
    if not (HERE / "node_modules" / "onnxruntime-web").is_dir():
        sys.exit(f"onnxruntime-web is not there: run npm ci in {HERE} first.")
    with server({"/model.onnx": chosen.model}, chosen.host, chosen.port) as served:
        print(f"http://{chosen.host}:{served.server_port}/")
        try:
            served.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
