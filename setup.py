"""Packaging of asvp-export."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="asvp-export",
    version="0.1.0",
    description="Export image-restoration models to verified ONNX files with an ASVP defence against distillation inside",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["asvp_export", "asvp_export.*"]),
    package_data={"asvp_export": ["py.typed", "photographs/*.md", "photographs/*/*.webp"]},
    install_requires=[
        "torch>=2.9",
        "numpy>=1.26",
        "onnx>=1.19",
        "onnxscript>=0.6",
        "onnx-graphsurgeon>=0.5.8",
        # The two onnxruntime packages overwrite each other: install one of them only.
        "onnxruntime-gpu>=1.23; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "onnxruntime>=1.23; sys_platform != 'linux' or platform_machine != 'x86_64'",
        "click>=8.1",
        "rich>=13",
        "scikit-image>=0.24",
        "pillow>=10.3",
        "safetensors>=0.4.5",
    ],
    extras_require={"dev": ["pytest", "hypothesis", "ruff", "pyright[nodejs]", "cmake"]},
    entry_points={"console_scripts": ["asvp-export = asvp_export.cli:main"]},
)
